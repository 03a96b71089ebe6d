"""Parts of anomaly detectors, over the maps of a frozen backbone."""

from .mambaad import LocalityEnhancedBlock, MambaADDecoder, MambaADFusion

__all__ = ["LocalityEnhancedBlock", "MambaADDecoder", "MambaADFusion"]
