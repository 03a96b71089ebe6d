"""Masked image modelling as a task of the trainer: the checkpoint's weights are the backbone's alone."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from timm.utils import unwrap_model
from torch.nn.parallel import DistributedDataParallel

from ...errors import UserError
from ...pretraining.masked_model import MaskedImageModel
from ..data.datasets import SKIPPED
from ..data.randomness import derive_seed
from .tasks import CarriesRunState

_STATE = "mim"  # entry of `task_state` that holds the decoder


class MaskedImageModeling(CarriesRunState):
    """Regresses hidden cells of images; labels are not looked at.

    Args:
        model: Backbone and decoder.
        device: Device.
    """

    def __init__(self, model: MaskedImageModel, device: torch.device):
        super().__init__(device=device, verbose=False)
        self.trainable_module: torch.nn.Module = model

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> "MaskedImageModeling":
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def whole(self, ema: bool = False) -> MaskedImageModel | None:
        """Backbone and decoder, raw or averaged."""
        module = self.get_trainable_module(ema=ema)
        return None if module is None else unwrap_model(module)

    def get_eval_model(self, module: Any = None, ema: bool = False) -> torch.nn.Module | None:
        """The backbone: what a checkpoint's weights are."""
        whole = unwrap_model(module) if module is not None else self.whole(ema)
        return None if whole is None else whole.backbone

    def get_task_state(self, module: Any = None, ema: bool = False) -> dict[str, Any]:
        state = super().get_task_state(module=module, ema=ema)
        whole = self.whole(ema)
        if whole is None:
            return state
        rest = {name: value for name, value in whole.state_dict().items() if not name.startswith("backbone.")}
        return state | {_STATE: rest}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: Any = None, ema: bool = False
    ) -> None:
        rest = dict(state or {})
        decoder = rest.pop(_STATE, None)
        super().load_task_state(rest, strict=strict, module=module, ema=ema)
        whole = self.whole(ema)
        if decoder is None or whole is None:
            raise UserError("the checkpoint is of no pre-training: it has no decoder to continue with")
        missing, unexpected = whole.load_state_dict(decoder, strict=False)
        missing = [name for name in missing if not name.startswith("backbone.")]
        if missing or unexpected:
            raise UserError(
                f"the checkpoint's decoder is another one ({', '.join([*missing, *unexpected][:3])}); continue with "
                "the same --fill and --decoder-width"
            )

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        loss, found, _ = self.trainable_module(input)
        return {"loss": loss, "output": found}

    @torch.inference_mode()
    def evaluate(
        self,
        model: torch.nn.Module,
        loader: Iterable,
        device: torch.device,
        *,
        autocast: Callable[[], AbstractContextManager],
        on_batch: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
        channels_last: bool = False,
    ) -> dict[str, float]:
        """Measure the loss over a loader, under the same masks at every call.

        Args:
            model: The backbone, raw or averaged.
            loader: Batches of images and labels on the device; the shares of all processes are summed.
            device: Where the batches are.
            autocast: Context of the forward pass.
            on_batch: Called with what was found and the labels; what it raises ends the evaluation.
            channels_last: Give the model channels-last images.

        Returns:
            `{"loss": mean over the images}`.

        Raises:
            UserError: No image could be read.
        """
        whole = next(w for ema in (False, True) if (w := self.whole(ema)) is not None and w.backbone is model)
        whole.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=device)
        for number, (images, labels) in enumerate(loader):
            images = images[labels != SKIPPED]
            if not len(images):
                continue
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            generator = torch.Generator().manual_seed(derive_seed("mask", number))
            visible = whole.draw(images, generator)
            with autocast():
                loss, found, _ = whole(images, visible)
            totals += torch.stack([loss.double() * len(images), loss.new_tensor(float(len(images))).double()])
            if on_batch is not None:
                on_batch(found, labels)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
        if not totals[1]:
            raise UserError("no image of the validation split could be read")
        return {"loss": (totals[0] / totals[1]).item()}


def create_pretraining(
    model: torch.nn.Module,
    device: torch.device,
    size: tuple[int, int],
    *,
    mask_ratio: float,
    cell: int | None,
    fill: str,
    decoder_width: int,
    gaps: bool,
) -> MaskedImageModeling:
    """Return the task of a backbone, checked against the size of the images.

    Args:
        model: Backbone without classifier.
        device: Device.
        size: Height and width of the images.
        mask_ratio: As `MaskedImageModel`, and so the others.
        cell: Side of a cell.
        fill: What hidden tokens become.
        decoder_width: Channels of the decoder.
        gaps: Scans of plain backbones decay over hidden tokens.

    Raises:
        UserError: Backbone, mask and size do not fit each other.
    """
    try:
        whole = MaskedImageModel(model, mask_ratio, cell=cell, fill=fill, decoder_width=decoder_width, gaps=gaps).to(
            device
        )
        whole.draw(torch.empty(1, 1, *size))
    except ValueError as error:
        raise UserError(str(error)) from error
    return MaskedImageModeling(whole, device)
