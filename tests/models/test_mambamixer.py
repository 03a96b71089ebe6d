"""MambaMixer's parts: what its definitions promise, sizes, precision, tracing, bad arguments."""

import pytest
import torch
from torch import nn

from visionssm.models.mambamixer import ChannelMixer, TokenMixer, WeightedAverage, WeightedAverageStage


def make_channel_mixer(dim=6, **kwargs):
    torch.manual_seed(0)
    mixer = ChannelMixer(dim, d_state=3, **kwargs).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return mixer


def make_stage(dim=8, blocks=1):
    torch.manual_seed(0)
    mixers = [
        mixer
        for _ in range(blocks)
        for mixer in (TokenMixer(dim, d_state=2), TokenMixer(dim, d_state=2), ChannelMixer(dim, d_state=2))
    ]
    return WeightedAverageStage(dim, mixers)


# --- the weighted average ---------------------------------------------------------------------------------------------


def test_ones_are_a_stack_of_residual_branches():
    stage = make_stage(blocks=2).double()
    x = expected = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    for norm, mixer in zip(stage.norms, stage.mixers, strict=True):
        expected = expected + mixer(norm(expected))
    torch.testing.assert_close(stage(x), expected, rtol=0, atol=1e-12)


def test_the_last_alone_is_a_chain():
    stage = make_stage().double()
    with torch.no_grad():
        for m in range(1, len(stage.mixers) + 2):
            stage.average.row(m).copy_(torch.eye(m)[-1])
    x = expected = torch.randn(1, 4, 3, 8, dtype=torch.float64)
    for norm, mixer in zip(stage.norms, stage.mixers, strict=True):
        expected = mixer(norm(expected))
    torch.testing.assert_close(stage(x), expected, rtol=0, atol=1e-12)


def test_average_by_hand():
    average = WeightedAverage(2)
    with torch.no_grad():
        average.weight.copy_(torch.arange(1.0, 7.0))
    outputs = [torch.tensor([1.0]), torch.tensor([10.0]), torch.tensor([100.0])]
    assert [average(outputs[:m]).item() for m in (1, 2, 3)] == [1.0, 2.0 + 30.0, 4.0 + 50.0 + 600.0]


def test_a_weight_for_each_pair_of_alternating_mixers():
    # the paper's L (2 L + 3) for L blocks of two mixers count the stage's input once more in each block's two sums, not
    # the stage's output
    for blocks in (1, 2, 5):
        rows = [WeightedAverage(2 * blocks).row(m).numel() for m in range(1, 2 * blocks + 2)]
        assert rows == list(range(1, 2 * blocks + 2))
        assert sum(rows[:-1]) == blocks * (2 * blocks + 1)


@pytest.mark.parametrize("count", [0, 4])
def test_wrong_number_of_outputs(count):
    with pytest.raises(ValueError, match=f"expected from 1 to 3 outputs, got {count}"):
        WeightedAverage(2)([torch.zeros(1)] * count)


# --- the channel mixer ------------------------------------------------------------------------------------------------


def test_tokens_do_not_meet():
    mixer, x = make_channel_mixer(), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    y = mixer(x)
    torch.testing.assert_close(mixer(x.flip(1, 2)), y.flip(1, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(mixer(x[1:, 2, 3]), y[1:, 2, 3], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixer(x.flatten(1, 2)), y.flatten(1, 2), rtol=0, atol=1e-12)


def test_reversed_channels_with_exchanged_directions():
    mixer, u = make_channel_mixer(), torch.randn(3, 12, dtype=torch.float64)
    y = mixer.scan(u)
    assert not torch.allclose(mixer.scan(u.flip(1)), y.flip(1))
    with torch.no_grad():
        for parameter in (mixer.conv_weight, mixer.conv_bias, *mixer.ssm.parameters()):
            parameter.copy_(parameter.flip(0))
    torch.testing.assert_close(mixer.scan(u.flip(1)), y.flip(1), rtol=0, atol=1e-12)


def test_scan_equals_the_definition_number_by_number():
    mixer, u = make_channel_mixer(), torch.randn(12, dtype=torch.float64)
    total, ssm = torch.zeros(12, dtype=torch.float64), mixer.ssm
    for k in range(2):
        sequence = u.flip(0) if k else u
        h, ys = torch.zeros(3, dtype=torch.float64), []
        for t in range(12):
            taps = [mixer.conv_weight[k, 0, 3 - j] * sequence[t - j] for j in range(4) if t >= j]
            v = torch.nn.functional.silu(sum(taps) + mixer.conv_bias[k, 0])
            projected = ssm.x_proj_weight[k, :, 0] * v
            delta = torch.nn.functional.softplus(ssm.dt_weight[k, 0, 0] * projected[0] + ssm.dt_bias[k, 0])
            h = torch.exp(-delta * ssm.A_log[k, 0].exp()) * h + delta * projected[1:4] * v
            ys.append(projected[4:] @ h + ssm.D[k, 0] * v)
        y = torch.stack(ys)
        total = total + (y.flip(0) if k else y)
    torch.testing.assert_close(mixer.scan(u[None])[0], total)


def test_zero_gate_gives_zero():
    mixer = make_channel_mixer()
    with torch.no_grad():
        mixer.in_proj.weight[12:] = 0
    assert (mixer(torch.randn(2, 3, 6, dtype=torch.float64)) == 0).all()


def test_backends_agree(monkeypatch):
    mixer, x = make_channel_mixer().float(), torch.randn(2, 5, 6)
    results = []
    for backend in ("portable", "reference"):
        monkeypatch.setenv("VISIONSSM_BACKEND", backend)
        results.append([mixer(x), *torch.autograd.grad(mixer(x).square().sum(), list(mixer.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


# --- all together -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 7)])
def test_any_size_and_gradients_of_all(size):
    stage = make_stage()
    y = stage(torch.randn(2, *size, 8))
    assert y.shape == (2, *size, 8)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.parameters())
    assert (stage.average.weight.grad != 0).all()


def test_low_precision():
    stage, x = make_stage(), torch.randn(1, 4, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert stage(x).isfinite().all()
    assert stage.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert stage.double()(x.double()).dtype == torch.float64


def test_compile():
    stage, x = make_stage().eval(), torch.randn(1, 3, 4, 8)
    torch.testing.assert_close(torch.compile(stage, backend="eager", fullgraph=True)(x), stage(x))


def test_drop_path_grows():
    stage = WeightedAverageStage(4, [nn.Identity() for _ in range(3)], drop_path_rate=0.2)
    assert [path.drop_prob for path in stage.drop_paths] == pytest.approx([0.0, 0.1, 0.2])
