"""Mamba2D against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import torch

from visionssm.ops import wavefront_scan

from . import Deviation, compare_operator, reference_input

RECORDS = ()


def _scan(record: dict) -> Iterator[Deviation]:
    for case in record["cases"]:
        shapes = case["shapes"]
        leaves = [torch.tensor(v).view(shapes[name]).requires_grad_() for name, v in case["inputs"].items()]
        y = wavefront_scan(*leaves)
        yield compare_operator(f"output of {shapes['x']}", y, np.array(case["y"]).reshape(y.shape))
        loss = (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        for name, grad in zip(case["inputs"], grads, strict=True):
            recorded = np.array(case["grads"][name]).reshape(grad.shape)
            yield compare_operator(f"gradient of {name} of {shapes['x']}", grad, recorded)


OPERATORS = {"mamba2d-scan": _scan}
