"""Settings of the whole test-suite."""

import os

import torch
from hypothesis import settings

# oversubscription slows small operators tenfold, so threads are pinned once, here
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))

# without a GPU the Triton kernels are interpreted, which must be said before triton is imported
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# a change is judged by the same examples each time; elsewhere every run draws new ones
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
