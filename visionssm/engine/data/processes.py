"""The processes of a run: started by torchrun or SLURM, one per device."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from timm.utils.distributed import is_distributed_env, world_info_from_env
from torch import distributed as dist

from ...errors import UserError


@dataclass(frozen=True)
class World:
    """Number of this process and how many there are."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def primary(self) -> bool:
        return self.rank == 0


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the GPU when there is one.

    Raises:
        UserError: The device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def start(
    device_name: str, backend: str | None, timeout: float, *, sharded: bool = False
) -> tuple[torch.device, World]:
    """Join the processes that torchrun or SLURM started, if any.

    Args:
        device_name: As for `resolve_device`; each process takes the GPU of its local rank.
        backend: torch.distributed backend, or None for nccl on GPUs and gloo elsewhere.
        timeout: Seconds without an answer after which a peer counts as lost.
        sharded: Make a group for one process too, and let tensors on the CPU travel beside those on GPUs: checkpoints
            are written behind the training's back, and shares may lie on the CPU.
    """
    device = resolve_device(device_name)
    backend = backend or ("gloo" if device.type != "cuda" else "cpu:gloo,cuda:nccl" if sharded else "nccl")
    if not is_distributed_env():
        if sharded:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return device, World()
    local_rank, rank, size = world_info_from_env()
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    # torchrun sets these; under plain SLURM the launcher script sets MASTER_ADDR and MASTER_PORT.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(size))
    limit = timedelta(seconds=timeout)
    store, rank, size = next(dist.rendezvous("env://", timeout=limit))
    # a restarted run would find the addresses of the processes before it in torchrun's store
    store = dist.PrefixStore(f"attempt-{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    return device, World(rank, local_rank, size)


def restarts() -> int:
    """Return how often torchrun has restarted the processes of this run (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


class PeerLostError(UserError):
    """Another process of the run died or stopped answering."""


def is_peer_failure(error: RuntimeError) -> bool:
    """Return whether an error comes from the communication between processes; gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "Connection closed" in str(error)


def stop(peers_answer: bool = True) -> None:
    """Leave the group of processes; without a goodbye when there is nobody to hear it."""
    if dist.is_initialized() and (peers_answer or dist.get_world_size() == 1):
        dist.destroy_process_group()


def any_process(flag: bool, world: World, device: torch.device) -> bool:
    """Return whether the flag is set in any process; all processes have to call this."""
    if world.size == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())
