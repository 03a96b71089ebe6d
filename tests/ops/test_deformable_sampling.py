"""Deformable sampling by torchvision's operator and by the formula, against the definition; its cost."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

from visionssm.ops import deformable_sampling
from visionssm.ops.deformable_sampling import deformable_sampling_reference


def inputs(b=2, height=3, width=4, d=4, groups=2, spare=2, scale=2.0):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(b, height, width, d, generator=g).double()
    return x, scale * torch.randn(b, height, width, 27 * groups + spare, generator=g).double(), groups


@pytest.mark.parametrize("case", [dict(), dict(height=1, width=1, d=3, groups=1), dict(groups=4, spare=0, scale=0.3)])
def test_equals_the_definition(case):
    arguments = inputs(**case)
    torch.testing.assert_close(deformable_sampling(*arguments), deformable_sampling_reference(*arguments))


def test_gradients():
    x, offset_mask, groups = inputs(b=1, height=2, width=3)
    leaves = x.requires_grad_(), offset_mask.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, o: deformable_sampling(x, o, groups), leaves)


def test_the_formula_is_the_operator():
    torch.manual_seed(0)
    x, offset_mask = torch.randn(3, 2, 5, 7, 8).double(), 2 * torch.randn(3, 2, 5, 7, 56).double()

    def sample(x, offset_mask):
        return deformable_sampling(x, offset_mask, 2)

    expected = torch.stack([sample(*pair) for pair in zip(x, offset_mask, strict=True)])
    torch.testing.assert_close(torch.func.vmap(sample)(x, offset_mask), expected)


def test_no_offset_and_one_weight_move_the_map():
    x = torch.randn(1, 4, 5, 16)
    offset_mask = torch.zeros(1, 4, 5, 32)
    offset_mask[..., 18 + 3] = 1.0  # second column, first row: the place above
    moved = deformable_sampling(x, offset_mask, 1)
    assert torch.equal(moved[:, 1:], x[:, :-1]) and not moved[:, 0].any()


def test_low_precision_is_computed_in_float32():
    x, offset_mask, groups = inputs()
    x, offset_mask = x.bfloat16(), offset_mask.bfloat16()
    y = deformable_sampling(x, offset_mask, groups)
    assert torch.equal(y, deformable_sampling(x.float(), offset_mask.float(), groups).bfloat16())


@pytest.mark.parametrize("weighted", [True, False])
def test_cost(weighted):
    x, weight = torch.empty(2, 6, 5, 7, device="meta"), torch.empty(4, 3, 3, 3, device="meta")
    offset, mask = torch.empty(2, 36, 3, 5, device="meta"), torch.empty(2, 18, 3, 5, device="meta")
    with FlopCounterMode(display=False) as counter:
        deform_conv2d(x, offset, weight, mask=mask if weighted else None)
    samples, products = 2 * 15 * 9 * 6 * (5 if weighted else 4), 2 * 15 * 9 * 4 * 3
    assert counter.get_total_flops() == 2 * (samples + products)


def test_trace_and_compile():
    x, offset_mask, groups = inputs()

    class Sampling(torch.nn.Module):
        def forward(self, x, offset_mask):
            return deformable_sampling(x, offset_mask, groups)

    expected = Sampling()(x, offset_mask)
    assert torch.equal(torch.fx.symbolic_trace(Sampling())(x, offset_mask), expected)
    compiled = torch.compile(Sampling(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, offset_mask), expected)


@pytest.mark.parametrize(
    ("x", "offset_mask", "message"),
    [((1, 2, 3, 5), (1, 2, 3, 54), "channels a multiple of 2"), ((1, 2, 3, 4), (1, 2, 3, 53), "54 or more")],
)
def test_bad_shapes_are_named(x, offset_mask, message):
    with pytest.raises(ValueError, match=message):
        deformable_sampling(torch.zeros(x), torch.zeros(offset_mask), 2)
