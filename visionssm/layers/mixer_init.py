"""Initial values of a selective-scan mixer (Mamba, arXiv:2312.00752, section 3.6), for any number of leading axes."""

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def init_a_log_(a_log: Tensor) -> Tensor:
    """Fill with log(1), ..., log(N) along the last axis (S4D-real); A = -exp(a_log)."""
    states = torch.arange(1, a_log.shape[-1] + 1, dtype=torch.float32, device=a_log.device)
    return a_log.copy_(states.log().expand_as(a_log))


@torch.no_grad()
def init_dt_bias_(bias: Tensor, dt_min: float = 1e-3, dt_max: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Fill so that softplus(bias) is log-uniform in [dt_min, dt_max] and at least `floor`."""
    uniform = torch.rand(bias.shape, dtype=torch.float32, device=bias.device)
    dt = torch.exp(math.log(dt_min) + uniform * math.log(dt_max / dt_min)).clamp_(min=floor)
    return bias.copy_(dt + torch.log(-torch.expm1(-dt)))


@torch.no_grad()
def init_dt_weight_(weight: Tensor) -> Tensor:
    """Fill the expansion (..., channels, rank) uniformly in +-rank**-0.5, which keeps the variance of delta."""
    return nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)


@torch.no_grad()
def init_projection_(weight: Tensor) -> Tensor:
    """Fill stacked projections (..., out, in) as PyTorch fills a Linear: uniform in +-in**-0.5."""
    return nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)
