"""Decoders of several dense tasks at once, over the maps of any backbone."""

from .mtmamba import MTMambaDecoder

__all__ = ["MTMambaDecoder"]
