"""Memory of a training step computed from shapes, against what a real step keeps alive."""

import gc
import json
import weakref

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.families import PICO, at_size
from visionssm.analysis import memory as memory_module
from visionssm.analysis.memory import kept_bytes, training_memory
from visionssm.commands import memory
from visionssm.scans import scan_table


class LiveMemory(TorchDispatchMode):
    """Follows the storages that operators make until they are freed: bytes alive now, and the most so far."""

    def __init__(self, *known):
        super().__init__()
        self.now = self.peak = 0
        self.alive = {t.untyped_storage()._cdata: None for t in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in self.alive:
                self._follow(t.untyped_storage())
        return out

    def _follow(self, storage):
        key, size = storage._cdata, storage.nbytes()

        def freed(_):
            self.now -= size
            self.alive.pop(key)

        self.alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def real_step(model, images, checkpointing):
    """Bytes alive between forward and backward of a real step, and the most at any time in it."""
    model.train()
    model.set_grad_checkpointing(checkpointing)
    gc.collect()
    with LiveMemory(*model.parameters(), *model.buffers(), images) as memory:
        loss = F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long))
        alive = memory.now
        loss.backward()
    return alive, memory.peak


def pico(name):
    return timm.create_model(name, num_classes=10, **at_size(name, 32))


@pytest.mark.parametrize("name", PICO)
def test_kept_bytes_are_those_of_a_real_step(name):
    model, images = pico(name), torch.randn(2, 3, 32, 32)
    real_step(model, images, False)  # builds the scan tables, which stay
    alive, _ = real_step(model, images, False)
    assert kept_bytes(model, images) - images.nbytes == pytest.approx(alive, rel=0.01)


@pytest.mark.parametrize("name", PICO)
def test_checkpointing_lies_between_what_stays_and_the_peak(name):
    model, images = pico(name), torch.randn(8, 3, 32, 32)
    real_step(model, images, True)
    kept = kept_bytes(model, images, checkpointing=True) - images.nbytes
    alive, peak = real_step(model, images, True)
    # operators' own working memory is in neither figure: where blocks are few, the peak is hardly more than what stays
    assert alive < kept < 1.1 * peak
    assert kept < kept_bytes(model, images) - images.nbytes


@pytest.mark.parametrize("name", PICO)
def test_shapes_alone_give_the_same(name, monkeypatch):
    """With the scan that runs here; a GPU's LayerNorm keeps a little more, and its RMSNorm one tensor less."""
    monkeypatch.setenv("VISIONSSM_BACKEND", "portable")
    memory = training_memory(name, 32, precision="float32", num_classes=10, **at_size(name, 32))
    found = memory.shared + 2 * memory.per_image
    assert found == pytest.approx(kept_bytes(pico(name), torch.randn(2, 3, 32, 32)), rel=0.06)


def test_state_is_five_copies_of_the_weights():
    model = pico("test_vmamba")
    weights = sum(p.nbytes for p in model.parameters())
    buffers = sum(b.nbytes for b in model.buffers())
    assert training_memory("test_vmamba", 32, num_classes=10).state == 5 * weights + 2 * buffers


def test_lower_precision_and_larger_images():
    half, full = (training_memory("test_vmamba", 64, precision=p) for p in ("bfloat16", "float32"))
    assert 0.5 * full.per_image < half.per_image < full.per_image
    assert half == training_memory("test_vmamba", 64, precision="float16")
    large = training_memory("test_vmamba", 128)
    assert large.per_image == pytest.approx(4 * half.per_image, rel=0.02)
    assert large.total(7) - large.total(6) == large.per_image
    assert large.total(large.largest_batch(2**30)) <= 2**30 < large.total(large.largest_batch(2**30) + 1)
    assert large.largest_batch(1000) == 0


def test_unknown_precision():
    with pytest.raises(ValueError, match="unknown precision 'fp8'; expected one of float32, bfloat16, float16"):
        training_memory("test_vmamba", 32, precision="fp8")


def test_without_triton(monkeypatch):
    monkeypatch.setattr(memory_module, "backend_unavailable", lambda *_: "triton is not installed")
    monkeypatch.delenv("VISIONSSM_BACKEND", raising=False)
    with pytest.raises(ImportError, match="but triton is not installed; VISIONSSM_BACKEND=portable"):
        training_memory("test_vmamba", 32)


def test_scan_tables_stay_real():
    before = scan_table("cross", 4, 4)
    training_memory("test_vmamba", 32)
    assert torch.equal(before, scan_table("cross", 4, 4))
    assert type(scan_table("cross", 4, 4)) is torch.Tensor


def run_tool(*arguments):
    return memory.main(list(arguments))


def test_tool_writes_markdown_and_rows(tmp_path, capsys):
    models = "--model", "test_vmamba", "test_vim", "--amp", "--amp-dtype", "bfloat16"
    assert run_tool(*models, "--img-size", "32", "64", "-b", "4", "--output", str(tmp_path / "m.md")) == 0
    text = (tmp_path / "m.md").read_text()
    assert (
        "python tools/memory.py --model test_vmamba test_vim --amp --amp-dtype bfloat16 --img-size 32 64 -b 4" in text
    )
    assert text.count("| `test_vmamba` |") == text.count("| `test_vim` |") == 2
    capsys.readouterr()
    former = "test_vmamba", "--precision", "bfloat16"
    assert run_tool(*former, "--img-size", "64", "-b", "4", "--output", str(tmp_path / "m.json")) == 0
    told = capsys.readouterr().err
    assert "is now given as --model test_vmamba" in told and "now called --amp --amp-dtype bfloat16" in told
    plain, saving = json.loads((tmp_path / "m.json").read_text())
    assert not plain["checkpointing"] and saving["checkpointing"]
    memory = training_memory("test_vmamba", 64)
    assert plain["per_image_mib"] == pytest.approx(memory.per_image / 2**20, abs=0.01)
    assert plain["gib"]["4"] == pytest.approx(memory.total(4) / 2**30, abs=0.01)


@pytest.mark.parametrize(
    "arguments, found",
    [
        (["--model", "vmambo*"], "no model matches vmambo*"),
        (["--model", "test_vmamba", "--img-size", "8"], "--img-size takes 32 and more"),
    ],
)
def test_tool_refuses(arguments, found, capsys):
    assert run_tool(*arguments) == 2
    assert found in capsys.readouterr().err
