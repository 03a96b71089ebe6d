"""Settings of the whole test-suite."""
import os

import torch

# oversubscription slows small operators tenfold, so threads are pinned once, here
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
