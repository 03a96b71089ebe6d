"""Write down the GPU, its driver, the versions and the rates that every measured number depends on.

python benchmarks/gpu_versions.py --output work/gpu-check
"""

import argparse
import json
import sys
from pathlib import Path

import timm
import torch
from gpu_measure import copy_bandwidth, environment, exponential_rate

import visionssm
from visionssm.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu_versions.json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_versions.py needs a CUDA GPU")
    found = environment() | {
        "timm": timm.__version__,
        "models": len(visionssm.list_models()),
        "copy_bandwidth_tb_per_s": copy_bandwidth() / 1e12,
        "exponentials_per_ns": exponential_rate() / 1e9,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    write_text(args.output / "gpu_versions.json", json.dumps(found, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    main()
