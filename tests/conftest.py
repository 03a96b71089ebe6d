"""Settings of the whole test-suite."""
import os

import torch

# oversubscription slows small operators tenfold, so threads are pinned once, here
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))

# without a GPU the Triton kernels are interpreted, which must be said before triton is imported
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
