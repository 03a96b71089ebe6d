"""The Triton kernels compile for GPUs that are not here, without spilling registers, to the code that was meant."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py"
CODE = """
import json, torch, kernel_resources as kr
from scan_shapes import MODEL_SHAPES
shape = next(s for s in MODEL_SHAPES if s.name == "VMamba-T stage 1")._replace(height=3, width=4)
ptx = {}
launches = {}
for width in (4, 5):
    sized = shape._replace(width=width)
    passes = kr.record(sized, torch.bfloat16, torch.bfloat16, 1)
    launches[width] = [launch for some in passes.values() for launch in some]
for name, (signature, constants, attributes), options, *_ in launches[4]:
    if "TURN" in constants:
        source = kr.ASTSource(kr.KERNELS[name], signature, constexprs=constants, attrs=attributes)
        compiled = kr.triton.compile(source, target=kr.TARGETS["sm_90"], options=options)
        ptx[kr.describe(name, constants)] = compiled.asm["ptx"]
print(json.dumps(dict(ptx=ptx, launches={w: [repr(x[:2]) for x in ls] for w, ls in launches.items()})))
"""

LAUNCHES = """
import json, torch, host_cost as hc
from scan_shapes import MODEL_SHAPES, make_inputs
from visionssm.ops import selective_scan
hc.pretend()
seen = []
said = lambda x: [str(x.dtype), list(x.shape)] if isinstance(x, torch.Tensor) else repr(x)
hc.Launcher.__call__ = lambda self, *arguments: seen.append([said(x) for x in (*arguments[:3], *arguments[9:])])
shape = next(s for s in MODEL_SHAPES if s.name == "VMamba-T stage 4")
inputs = make_inputs(shape._replace(height=2, width=2, channels=64, rank=4), torch.bfloat16, batch=1)
inputs["u"].requires_grad_()
for _ in range(2):
    torch.autograd.grad(selective_scan(**inputs, backend="triton").float().sum(), inputs["u"])
print(json.dumps(seen))
"""


def run(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parent), environment.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def compiled():
    done = run("-c", CODE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nan_survives_the_softplus(compiled):
    """A GPU's minimum of NaN and 64 is 64; only their comparison keeps NaN."""
    assert len(compiled["ptx"]) == 3
    for kernel, code in compiled["ptx"].items():
        assert "lg2.approx" in code, kernel
        assert "min.f32" not in code and "max.f32" not in code, kernel


def test_sizes_of_any_parity_share_their_kernels(compiled):
    """Numbers that follow the size of the map are arguments, nothing that code is made for."""
    even, odd = compiled["launches"]["4"], compiled["launches"]["5"]
    scans = [kernel for kernel in even if "lanes_" in kernel]
    assert scans and [kernel for kernel in odd if "lanes_" in kernel] == scans


def test_a_second_launch_is_given_what_the_first_was():
    """Without Triton's binding of arguments, but all of them and in its order."""
    done = run("-c", LAUNCHES)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(seen) >= 8 and seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_no_spill_on_an_h100_at_one_shape(tmp_path):
    done = run(SCRIPT, "--shapes", "GroupMamba-T stage 1", "--targets", "sm_90", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "kernel_resources.md").read_text()
    assert "lanes_fwd" in table and "lanes_bwd" in table


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_shape_of_a_model(target):
    done = run(SCRIPT, "--targets", target)
    assert done.returncode == 0, done.stdout + done.stderr
