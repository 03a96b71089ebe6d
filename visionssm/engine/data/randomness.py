"""Random numbers as a function of what they are for.

A run that is interrupted and resumed must draw the numbers the uninterrupted run would have drawn. So nothing is read
from a running stream: before every use the generators are seeded from the run's seed and the names of the use, such as
(epoch, sample) for augmentation and (epoch, step, rank) for mixup and drop path.
"""

import hashlib
import random

import numpy as np
import torch


def derive_seed(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of the key and on their order."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(*key: int | str) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices) from a key."""
    seed = derive_seed(*key)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)
