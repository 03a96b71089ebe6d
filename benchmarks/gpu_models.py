"""Check and time whole models on a GPU, beside timm's.

    python benchmarks/gpu_models.py --output benchmarks/results [--models vmamba_tiny_s1l8 swin_tiny_patch4_window7_224]

Inference and training (forward, backward and AdamW step) in images per second under autocast, and peak memory, on
random images. Our models are checked first: logits on the GPU in float32 against the CPU's.
With --vmamba-repo, a checkout of VMamba whose scan extension is installed, its own vmamba_tiny_s1l8 takes part.
With --compile every model is compiled, with --graph every inference pass is replayed from a CUDA graph. The second part
takes features of 1248 x 1248 images (Vim's claim against DeiT), DeiT with and without fused attention.
"""

import argparse
import sys
from pathlib import Path

import timm
import torch
from cpu_models import AGAINST, smallest
from gpu_measure import Results, capture, eager_milliseconds, environment, exact_products, peak_bytes

import visionssm

LARGE = ("vim_tiny", "deit_tiny_patch16_224", "deit_tiny_patch16_224 without fused attention")
THEIRS = "VMamba's own vmamba_tiny_s1l8"
COLUMNS = [
    "model",
    "image",
    "batch",
    "images_per_s",
    "inference_mib",
    "training_images_per_s",
    "training_mib",
    "error",
    "failed",
]


def original(repository: Path) -> torch.nn.Module:
    """Their model, built by their code."""
    sys.path.insert(0, str(repository / "classification" / "models"))
    import vmamba

    return vmamba.VSSM(
        depths=[2, 2, 8, 2],
        dims=96,
        drop_path_rate=0.2,
        ssm_d_state=1,
        ssm_ratio=1.0,
        ssm_dt_rank="auto",
        ssm_conv=3,
        ssm_conv_bias=False,
        ssm_init="v0",
        forward_type="v05_noz",
        mlp_ratio=4.0,
        norm_layer="ln2d",
        downsample_version="v3",
        patchembed_version="v2",
    ).cuda()


def create(name: str, image: int, args) -> torch.nn.Module:
    if name == THEIRS:
        return original(args.vmamba_repo)
    fused = " without fused attention" not in name
    timm.layers.set_fused_attn(fused)
    name = name.split()[0]
    sized = {"img_size": image} if "deit" in name and image != 224 else {}
    return timm.create_model(name, **sized).cuda()


def check(name: str, image: int = 224) -> float | None:
    """Relative error of the logits on the GPU against the CPU's, float32; None for models that are not ours."""
    if name not in visionssm.list_models():
        return None
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, image, image)
    with torch.no_grad(), exact_products():
        expected = model(x)
        actual = model.cuda()(x.cuda()).cpu()
    error = ((actual - expected).norm() / expected.norm()).item()
    if not error < 1e-3:
        raise ValueError(f"logits on the GPU differ from the CPU's by {error:.2g}")
    return error


def inference_call(model, x, dtype, graph: bool, features: bool):
    model.eval()

    def call():
        with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            return model.forward_features(x) if features else model(x)

    return capture(call) if graph else call


def training_call(model, x, dtype):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    target = torch.randint(0, 1000, x.shape[:1], device="cuda")

    def call():
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = torch.nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def run(name: str, image: int, batch: int, args, features: bool, results: Results) -> None:
    dtype = getattr(torch, args.dtype)
    with results.row(model=name, image=image, batch=batch) as row:
        if not features:
            row["error"] = check(name, image)
        x = torch.randn(batch, 3, image, image, device="cuda")
        model = create(name, image, args)
        compiled = torch.compile(model) if args.compile and not features else model
        call = inference_call(compiled, x, dtype, args.graph, features)
        row["inference_mib"] = peak_bytes(call) / 2**20
        row["images_per_s"] = batch / eager_milliseconds(call, 10) * 1e3
        if not features:
            call = training_call(compiled, x, dtype)
            row["training_mib"] = peak_bytes(call) / 2**20
            row["training_images_per_s"] = batch / eager_milliseconds(call, 10) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="default: the smallest of each kind, and some of timm")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--graph", action="store_true", help="replay inference from a CUDA graph")
    parser.add_argument("--large-batch", type=int, default=8, help="images of 1248 x 1248; 0 leaves that part out")
    parser.add_argument("--vmamba-repo", type=Path, help="a checkout of VMamba with its scan extension installed")
    parser.add_argument("--output", type=Path, help="folder for gpu_models.json and gpu_models.md")
    args = parser.parse_args()
    if args.models is None:
        args.models = [*smallest(), *AGAINST]
    unknown = [m for m in args.models if not timm.is_model(m)]
    if unknown:
        sys.exit(f"unknown models: {', '.join(unknown)}; ours are {', '.join(visionssm.list_models())}")
    if not torch.cuda.is_available():
        sys.exit("gpu_models.py needs a CUDA GPU")
    env = environment() | {"dtype": args.dtype, "compiled": args.compile, "cuda_graph": args.graph}
    results = Results(args.output, "gpu_models", "Models on a GPU", env, COLUMNS)
    for name in [*args.models, *([THEIRS] if args.vmamba_repo else [])]:
        run(name, args.img_size, args.batch, args, False, results)
    for name in LARGE if args.large_batch else ():
        run(name, 1248, args.large_batch, args, True, results)
    if results.failures:
        sys.exit("FAILED\n" + "\n".join(results.failures))


if __name__ == "__main__":
    main()
