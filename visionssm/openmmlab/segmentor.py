"""Undivided networks of `visionssm.segmentation` in mmseg; name this module in `custom_imports`, as it needs mmseg."""

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor

from ..errors import CheckpointError
from ..segmentation import create_model
from .errors import ConfigError


@MODELS.register_module()
class VisionSSMSegmentor(EncoderDecoder):
    """A whole network that gives logits, in the place of backbone and head; all else is mmseg's.

    Losses, class weights, sliding windows, metrics, checkpoints and the tools work as with any segmenter.

    Args:
        backbone: The network: `name`, one of `visionssm.segmentation.list_models`; `in_chans`; `pretrained`, a file
            of the authors or of our own or False; and any argument of the network's class.
        decode_head: `num_classes`, `loss_decode` and others of mmseg's `BaseDecodeHead`; it has no parameters.
        **others: Further arguments of mmseg's `EncoderDecoder`.

    Raises:
        ConfigError: there is no such network, it refuses an argument, or the file does not fill it.
    """

    def __init__(self, backbone: dict, decode_head: dict, **others: Any) -> None:
        backbone, decode_head = dict(backbone), dict(decode_head)
        head = {"type": LogitsHead.__name__, **decode_head}
        outputs = head.get("out_channels") or head["num_classes"]
        super().__init__({"type": WholeNetwork.__name__, "num_classes": outputs, **backbone}, head, **others)


@MODELS.register_module()
class WholeNetwork(BaseModule):
    """A network of `visionssm.segmentation` whose logits stand where mmseg expects a backbone's maps.

    Args:
        name: Name of the network.
        num_classes: Channels of its logits.
        pretrained: File to fill it from, or False.
        **arguments: Arguments of the network's class.

    Raises:
        ConfigError: there is no such network, it refuses an argument, or the file does not fill it.
    """

    def __init__(self, name: str, num_classes: int, pretrained: str | bool = False, **arguments: Any) -> None:
        super().__init__()
        if pretrained is True:
            raise ConfigError("pretrained must be a file or False: no whole network is published for download")
        try:
            self.network = create_model(name, num_classes=num_classes, checkpoint=pretrained or None, **arguments)
        except CheckpointError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"network {name!r} cannot be built: {error}") from error

    def init_weights(self) -> None:
        """Nothing: the network began itself, or was filled from a file."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (b, c, h, w) to logits (b, num_classes, h, w); coarser ones too where it is trained so."""
        y = self.network(x)
        return (y,) if isinstance(y, Tensor) else tuple(y)


@MODELS.register_module()
class LogitsHead(BaseDecodeHead):
    """A head without parameters: what it reads are the logits. Arguments as of mmseg's `BaseDecodeHead`.

    Logits of deep supervision count half as much from level to level, and the coarsest nothing, as nnU-Net has it.
    """

    def __init__(self, **head: Any) -> None:
        super().__init__(in_channels=1, channels=1, in_index=0, dropout_ratio=0, init_cfg=None, **head)
        del self.conv_seg

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The finest logits."""
        return inputs[0]

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: Any) -> dict:
        """Losses by name."""
        weights = [0.5**level for level in range(max(len(inputs) - 1, 1))]
        total: dict[str, Tensor] = {}
        for logits, weight in zip(inputs, weights, strict=False):
            losses = self.loss_by_feat(logits, batch_data_samples)
            if not total:
                total["acc_seg"] = losses["acc_seg"]
            for name, value in losses.items():
                if name != "acc_seg":
                    share = value * (weight / sum(weights))
                    total[name] = total[name] + share if name in total else share
        return total
