"""The memory computed from shapes, against what the GPU's allocator holds."""

import pytest
import timm
import torch
import torch.nn.functional as F

from tests.families import SMALL
from visionssm.analysis.memory import training_memory

BATCH = 8


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SMALL)
def test_kept_memory_is_what_the_allocator_holds(name, precision):
    memory = training_memory(name, 224, precision=precision)
    model = timm.create_model(name).cuda().train()
    labels = torch.zeros(BATCH, dtype=torch.long, device="cuda")

    def forward():
        images = torch.randn(BATCH, 3, 224, 224, device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            return F.cross_entropy(model(images), labels)

    forward().backward()  # builds the scan tables and the libraries' work spaces
    model.zero_grad(set_to_none=True)
    before = torch.cuda.memory_allocated()
    loss = forward()
    held = torch.cuda.memory_allocated() - before
    del loss
    assert held == pytest.approx(memory.shared + BATCH * memory.per_image, rel=0.05)
