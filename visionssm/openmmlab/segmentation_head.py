"""Decoders of `visionssm.segmentation` as a head of mmseg; name this module in `custom_imports`, as it needs mmseg."""

from typing import Any

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor

from ..errors import nearest
from ..segmentation import MSVMDecoder

_DECODERS = {"msvm_unet": MSVMDecoder}


@MODELS.register_module()
class VisionSSMHead(BaseDecodeHead):
    """A decoder over several maps of a backbone; losses, sampling and the classifier are mmseg's.

    Args:
        decoder: "msvm_unet".
        decoder_args: Arguments of the decoder's class, `depths`, `drop_path_rate`, `scale` or `scan`.
        channels: Channels that the decoder gives: those of the finest map.
        **head: Arguments of mmseg's `BaseDecodeHead`: `in_channels` and `in_index` of the maps, finest first,
            `num_classes`, `loss_decode` and others.

    Raises:
        ValueError: the decoder is unknown, or `channels` are not what it gives.
    """

    def __init__(
        self, *, channels: int, decoder: str = "msvm_unet", decoder_args: dict | None = None, **head: Any
    ) -> None:
        super().__init__(channels=channels, input_transform="multiple_select", **head)
        if decoder not in _DECODERS:
            raise ValueError(f"unknown decoder {decoder!r}{nearest(decoder, _DECODERS)}; known: {', '.join(_DECODERS)}")
        if channels != self.in_channels[0]:
            raise ValueError(
                f"channels must be those of the finest map, {self.in_channels[0]}, as decoder {decoder!r} gives these; "
                f"got {channels}"
            )
        self.decoder = _DECODERS[decoder](self.in_channels, 0, **(decoder_args or {}))

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Maps of the backbone to logits (b, num_classes, h, w), of the image's size for maps from stride 4."""
        return self.cls_seg(self.decoder(self._transform_inputs(inputs)))
