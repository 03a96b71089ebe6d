"""Initial values of the mixers."""

import torch
import torch.nn.functional as F

from visionssm.layers import init_a_log_, init_dt_bias_, init_dt_weight_, init_projection_


def test_a_log_is_the_logarithm_of_the_state_number():
    a_log = init_a_log_(torch.empty(3, 5, 4))
    torch.testing.assert_close(a_log.exp(), torch.arange(1.0, 5.0).expand(3, 5, 4))
    assert init_a_log_(torch.empty(2, 1)).abs().max() == 0


def test_dt_bias_spreads_the_step_size_log_uniformly():
    torch.manual_seed(0)
    dt = F.softplus(init_dt_bias_(torch.empty(4, 5000)))
    assert dt.min() >= 1e-3 * 0.999 and dt.max() <= 0.1 * 1.001
    assert abs(dt.log10().mean() + 2) < 0.02  # middle of the decades -3 to -1
    assert F.softplus(init_dt_bias_(torch.empty(1000), dt_min=1e-6, dt_max=1e-5)).min() >= 1e-4 * 0.99


def test_projections_are_uniform_within_their_bounds():
    torch.manual_seed(0)
    for fill, width in ((init_dt_weight_, 4), (init_projection_, 64)):
        weight = fill(torch.empty(4, 500, width))
        bound = width**-0.5
        assert weight.abs().max() <= bound
        assert abs(weight.std() - bound / 3**0.5) < 0.02 * bound


def test_low_precision_is_rounded_from_float32():
    a_log = init_a_log_(torch.empty(2, 16, dtype=torch.bfloat16))
    assert torch.equal(a_log[0], torch.arange(1.0, 17.0).log().bfloat16())
