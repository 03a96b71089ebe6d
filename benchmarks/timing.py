"""The timer of the benchmarks on a CPU: PyTorch's own, with the calls taken in turn."""

import statistics
from collections.abc import Callable, Mapping

from torch.utils.benchmark import Timer


def timer_of(call: Callable[[], object], threads: int) -> tuple[Timer, int]:
    """A warmed timer of a call, and how many calls take some 50 ms together."""
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    once = timer.timeit(1).median
    return timer, max(1, min(100, int(0.05 / once)))


def seconds_in_turn(calls: Mapping[str, Callable[[], object]], threads: int, rounds: int) -> dict[str, float]:
    """Median seconds of each call. They take turns, so that a disturbance of the machine hits all of them.

    Args:
        calls: By name.
        threads: PyTorch's threads while they run.
        rounds: Measurements of each.
    """
    timers = {name: timer_of(call, threads) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (timer, number) in timers.items():
            taken[name].append(timer.timeit(number).median)
    return {name: statistics.median(values) for name, values in taken.items()}
