"""Compile the scan's kernels that benchmarks and tests on a GPU launch, in parallel, into Triton's cache.

    TRITON_CACHE_DIR=work/cache python benchmarks/gpu_warm.py --workers 14

For the GPU that is there, or for sm_90; the GPU itself stays idle. What one process compiles later in a minute or two,
call by call, is then read from the cache.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
import triton
from kernel_resources import KERNELS, TARGETS, Launch, record
from scan_shapes import MODEL_SHAPES
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from visionssm.ops.selective_scan.triton import config


def launches(dtype: torch.dtype) -> list[Launch]:
    """What `gpu_scan.py --routes` launches for VMamba-T and without it for the others, and the tests for two images."""
    found: dict[str, Launch] = {}
    for shape in MODEL_SHAPES:
        routes = shape.order().shape[0]
        choices = [(shape, out, None) for out in (torch.float32, dtype)]
        if "VMamba-T" in shape.name:
            choices += [(shape, torch.float32, n) for n in range(1, routes + 1) if routes % n == 0]
        choices += [(shape._replace(batch=2), dtype, walk) for walk in (None, routes)]
        for sized, out, walk in choices:
            rule = config.routes_per_program
            try:
                if walk is not None:
                    config.routes_per_program = lambda *_, walk=walk: walk
                passes = record(sized, dtype, out)
            finally:
                config.routes_per_program = rule
            for launch in (x for some in passes.values() for x in some):
                found.setdefault(repr(launch[:3]), launch)
    return list(found.values())


def compile_launch(launch: Launch, target: GPUTarget) -> None:
    signature, constants, attributes = launch.specialisation
    source = ASTSource(KERNELS[launch.name], signature, constexprs=constants, attrs=attributes)
    triton.compile(source, target=target, options=launch.options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--most", type=int, help="compile no more kernels than these")
    args = parser.parse_args()
    if knobs.runtime.interpret:
        sys.exit("TRITON_INTERPRET is set, so the kernels would be interpreted; unset it to compile them")
    target = triton.runtime.driver.active.get_current_target() if torch.cuda.is_available() else TARGETS["sm_90"]
    jobs = launches(getattr(torch, args.dtype))[: args.most]
    failures = []
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(compile_launch, job, target): job for job in jobs}
        for done in as_completed(running):
            if error := done.exception():
                failures.append(f"{running[done].name}: {error}".splitlines()[0])
    print(f"{len(jobs)} kernels for {target}")
    if failures:
        sys.exit("FAILED\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
