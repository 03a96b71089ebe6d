"""vGamba is bound to a size, and can be resampled for another."""

import pytest
import timm
import torch

import visionssm  # noqa: F401


def make(size):
    return timm.create_model("test_vgamba", img_size=size, num_classes=5).eval()


def test_other_sizes_are_refused_with_advice():
    with pytest.raises(ValueError, match="set_input_size"):
        make(64)(torch.randn(1, 3, 96, 64))


def test_resampled_as_loaded():
    source = make(64)
    loaded = make((96, 128))
    loaded.load_state_dict(loaded.checkpoint_filter_fn(source.state_dict(), loaded))
    source.set_input_size((96, 128))
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(source(x), loaded(x))


def test_registers_are_not_trained():
    frozen = {n.rsplit(".", 1)[1] for n, p in make(64).named_parameters() if not p.requires_grad}
    assert frozen == {"registers", "registers_value"}
