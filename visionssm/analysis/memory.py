"""Memory of a training step, computed from shapes: nothing is allocated, and no GPU is needed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import timm
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from ..ops import backend_unavailable
from ..scans import placing_tables

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_COPIES = 5  # weights, their gradients, AdamW's two moments, and the averaged weights: all float32


class TrainingMemory(NamedTuple):
    """Bytes that a training step holds when its backward begins, and the gradients that come then."""

    state: int  # weights, gradients, optimizer state, averaged weights
    shared: int  # further tensors of which there is one for all images: the weights cast by autocast, scan tables
    per_image: int  # the image, and what the forward keeps of it for the backward

    def total(self, batch: int) -> int:
        return self.state + self.shared + batch * self.per_image

    def largest_batch(self, limit: int) -> int:
        """Images that fit into so many bytes; 0 if none does."""
        return max(0, (limit - self.state - self.shared) // self.per_image)


def training_memory(
    name: str, size: int, *, precision: str = "bfloat16", checkpointing: bool = False, **model_kwargs: Any
) -> TrainingMemory:
    """Compute what a training step on a GPU holds, with the Triton scan, AdamW and averaged weights.

    Counted is what is alive between forward and backward. What an operator needs only while it runs comes on top, and
    what the allocator cannot use. With checkpointing the block whose recomputation takes most is included.

    Args:
        name: Model.
        size: Height and width of the image.
        precision: "float32", or the lower precision of autocast, "bfloat16" or "float16".
        checkpointing: Recompute the blocks in the backward.
        **model_kwargs: Further arguments of the model.

    Raises:
        ValueError: the precision is unknown.
        ImportError: Triton, whose scan is counted, is not installed or too old.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    reason = backend_unavailable("triton", "cuda")
    if reason is not None and not os.environ.get("VISIONSSM_BACKEND"):
        raise ImportError(
            f"the memory of the Triton scan is counted, but {reason}; "
            "VISIONSSM_BACKEND=portable in the environment counts the portable scan"
        )
    model: Any = timm.create_model(name, device="meta", **model_kwargs)
    channels = model.pretrained_cfg["input_size"][0]
    with _fake_gpu() as device:
        model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
        with _cuda_autocast(PRECISIONS[precision]):
            # a batch norm after the last map refuses one image where that is one pixel
            two, three = (
                kept_bytes(model, torch.empty(b, channels, size, size, device=device), checkpointing) for b in (2, 3)
            )
    state = sum(
        t.numel() * t.element_size() * (_COPIES if isinstance(t, nn.Parameter) else 2)
        for t in (*model.parameters(), *model.buffers())
    )
    return TrainingMemory(state, shared=3 * two - 2 * three, per_image=three - two)


def kept_bytes(model: Any, images: Tensor, checkpointing: bool = False) -> int:
    """Bytes alive after a forward in training mode, beyond the model: images, and tensors saved for the backward.

    Args:
        model: Classifier, a module of timm's, on the device of the images, left in training mode.
        images: (b, c, h, w).
        checkpointing: As if the model recomputed its blocks; with the saved tensors of the largest block.
    """
    model.train()
    model.set_grad_checkpointing(checkpointing)
    own = {_key(t) for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}
    blocks = [0]

    def save_in(store: dict[int, Tensor]) -> saved_tensors_hooks:
        def pack(t: Tensor) -> Tensor:
            if _key(t) not in own:
                store[_key(t)] = t
            return t

        return saved_tensors_hooks(pack, lambda t: t)

    def run_block(function: Callable, *args, **_) -> Tensor:
        kept.update((_key(t), t) for t in args if isinstance(t, Tensor))
        recomputed: dict[int, Tensor] = {}
        with save_in(recomputed):
            out = function(*args)
        blocks.append(_size(t for key, t in recomputed.items() if key not in kept))
        return out

    kept[_key(images)] = images
    with save_in(kept), mock.patch.object(torch.utils.checkpoint, "checkpoint", run_block):
        logits = model(images)
        F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.long, device=images.device))
    model.set_grad_checkpointing(False)
    return _size(kept.values()) + max(blocks)


def _key(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _size(tensors) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


@contextmanager
def _fake_gpu() -> Iterator[torch.device]:
    """A mode whose tensors say they are on a GPU and have no memory; scan tables among them."""
    mode = FakeTensorMode()

    def place(table: Tensor, device: torch.device) -> Tensor:
        if device.type != "cuda":
            return table.to(device)
        with mode:
            return torch.empty(table.shape, dtype=table.dtype, device=device)

    with placing_tables(place), mode:
        yield torch.device("cuda", 0)


@contextmanager
def _cuda_autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """torch.autocast("cuda"), which by itself turns off where there is no GPU."""
    if dtype is None:
        yield
        return
    enabled, before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", enabled)
        torch.set_autocast_dtype("cuda", before)
