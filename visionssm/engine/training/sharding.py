"""FSDP2: every process holds a share of weights, gradients and optimizer state, and gathers a block when it runs."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ...errors import UserError
from ..data.datasets import SKIPPED
from ..data.processes import World, any_process
from .tasks import CarriesRunState

# that update shares of a weight as they update all of it, which tests/engine/test_sharded_runs.py compares
OPTIMIZERS = (
    "sgd momentum adam adamw nadam nadamw radam adamax lion rmsprop rmsproptf lamb lars adagrad adabelief madgrad adan "
    "adoptw laprop"
).split()


def units(model: nn.Module) -> list[str]:
    """Return the names of the modules that are gathered one at a time: a model's layers, as it groups its parameters.

    A layer is a unit where one module holds its parameters and no others: a block, a downsampling. What is left belongs
    to the whole model, which is gathered for the length of a step.

    Args:
        model: timm model; its `group_matcher` says which parameters are of one layer.

    Raises:
        UserError: It does not say so.
    """
    if not hasattr(model, "group_matcher"):
        raise UserError(f"--fsdp needs a model that groups its parameters by layer; {type(model).__name__} does not")
    modules = dict(model.named_modules())
    found = []
    matcher = cast(Any, model).group_matcher(coarse=False)
    for names in group_parameters(model, matcher).values():
        path = element = _innermost(names)
        # up to the element of a sequence, because a sequence's own forward is not what everybody calls
        while element and not isinstance(modules[element.rpartition(".")[0]], (nn.Sequential, nn.ModuleList)):
            element = element.rpartition(".")[0]
        for candidate in (element, path):
            if candidate and _holds_only(modules[candidate], candidate, names):
                if not isinstance(modules[candidate], (nn.Sequential, nn.ModuleList)):
                    found.append(candidate)
                break
    return found


def _innermost(names: Sequence[str]) -> str:
    """Return the innermost module that holds all of some parameters, or ""."""
    paths = [name.split(".")[:-1] for name in names]
    depth = 0
    while all(len(path) > depth for path in paths) and len({path[depth] for path in paths}) == 1:
        depth += 1
    return ".".join(paths[0][:depth])


def _holds_only(module: nn.Module, path: str, names: Sequence[str]) -> bool:
    return {f"{path}.{name}" for name, _ in module.named_parameters()} == set(names)


def refuse_unsharded(
    *,
    optimizer: str,
    clip_mode: str,
    compiled: bool,
    distillation: str | None,
    average_on_cpu: bool,
    offload: bool,
    lower_precision: str | None,
    device: torch.device,
) -> None:
    """Refuse what needs a weight in one piece, before the first step.

    Args:
        optimizer: timm's name.
        clip_mode: Of gradient clipping.
        compiled: The model is compiled.
        distillation: What is distilled, or None.
        average_on_cpu: The averaged weights are kept on the CPU.
        offload: The shares are kept on the CPU between uses.
        lower_precision: Of the forward pass, or None.
        device: Device.

    Raises:
        UserError: One of them does; the message says what to do.
    """
    if optimizer.lower() not in OPTIMIZERS:
        raise UserError(
            f"--fsdp does not go with --opt {optimizer}, which is not known to work on shares of a weight; take one of "
            + ", ".join(OPTIMIZERS)
        )
    if clip_mode == "agc":
        raise UserError("--fsdp does not go with --clip-mode agc, which needs whole rows of a weight; take norm")
    if compiled:
        raise UserError("--fsdp does not go with --torchcompile; leave one of them out")
    if distillation not in (None, "logit"):
        raise UserError(
            f"--fsdp does not go with --kd-distill-type {distillation}, which runs parts of the student; take logit"
        )
    if average_on_cpu:
        raise UserError("--fsdp shards the averaged weights too; leave --model-ema-force-cpu out")
    if offload and lower_precision == "float16":
        raise UserError("--fsdp-offload leaves gradients on the CPU, without a loss scale; take --amp-dtype bfloat16")
    if offload and device.type == "cpu":
        raise UserError("--fsdp-offload moves the shares from a GPU to the CPU; there is no GPU here, leave it out")


def shard_task(task: CarriesRunState, device: torch.device, world: World, *, offload: bool = False) -> None:
    """Shard what a task trains, and its averaged weights, in place.

    Args:
        task: On the device, before an optimizer is made of its parameters.
        device: Device.
        world: The processes that share it.
        offload: Keep the shares on the CPU between uses.
    """
    trained = task.get_trainable_module()
    assert trained is not None
    shard(trained, device, world, offload=offload)
    if task.has_ema():
        average: Any = task.get_trainable_module(ema=True)
        shard(average.module, device, world, offload=offload)
        average.foreach = False  # one call cannot take sharded weights and whole buffers


def shard(model: nn.Module, device: torch.device, world: World, *, offload: bool = False) -> nn.Module:
    """Shard a model in place: its units, then what is left.

    Weights travel and gradients are summed in float32; autocast lowers the precision of the products, as with DDP.

    Args:
        model: On the device.
        device: Device.
        world: The processes that share it.
        offload: Keep the shares on the CPU between uses.

    Returns:
        The same module.
    """
    options: dict[str, Any] = dict(
        mesh=init_device_mesh(device.type, (world.size,)),
        offload_policy=CPUOffloadPolicy() if offload else OffloadPolicy(),
    )
    for name in units(model):
        fully_shard(model.get_submodule(name), **options)
    fully_shard(model, **options)
    return model


def is_sharded(module: Any) -> bool:
    """Return whether a module is sharded."""
    return isinstance(module, FSDPModule)


def own_share(value: Tensor) -> Tensor:
    """Return the share of a tensor that this process holds."""
    return value.to_local() if isinstance(value, DTensor) else value


def share_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Cut state that was loaded in one piece, as every process has it, into shares like those of its parameters."""
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, DTensor):
            continue
        for name, value in state.items():
            if isinstance(value, Tensor) and not isinstance(value, DTensor) and value.shape == parameter.shape:
                state[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def even(
    batches: Iterable[tuple[Tensor, Tensor]], world: World, device: torch.device, shape: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give all processes as many batches, since a sharded model runs in all of them or in none.

    Args:
        batches: Images and labels; the processes may have other numbers of them.
        world: Processes.
        device: Device.
        shape: Of an image.

    Yields:
        The batches, then one black image whose label is left out until the last process is done.
    """
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        if not any_process(batch is not None, world, device):
            return
        if batch is None:
            batch = torch.zeros(1, *shape, device=device), torch.full((1,), SKIPPED, device=device)
        yield batch
