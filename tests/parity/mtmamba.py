"""MTMamba's decoders against the recorded runs of the originals, on given maps."""

from torch import Tensor

from visionssm.multitask import MTMambaDecoder

from . import Case

RECORDS = ("mtmamba_*",)


def build(case: Case) -> MTMambaDecoder:
    config = case.config or {}
    return MTMambaDecoder(config["channels"], config["tasks"], 2 if config["kind"] == "mtmamba_plus" else 1).eval()


def convert(state_dict: dict[str, Tensor], model: MTMambaDecoder) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: MTMambaDecoder, x: list[Tensor], case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, args, result: out.__setitem__(name, result.permute(0, 3, 1, 2))

    def keep_all(name: str):
        return lambda module, args, result: out.update(
            {f"{name}[{task}]": y.permute(0, 3, 1, 2) for task, y in result.items()}
        )

    for s, (stage, exchange) in enumerate(zip(model.stages, model.exchanges, strict=True)):
        for task, part in stage.items():
            part.concat.register_forward_hook(keep(f"concat_layers.{task}_{s}"))
            for name in ("block_2", "block_stm"):
                part.blocks.register_forward_hook(keep(f"{name}.{task}_{s}"))
        for name in ("block_3", "block_ctm"):
            exchange.register_forward_hook(keep_all(f"{name}.{s}"))
    out.update(model(x, (case.config or {})["image_size"]))
    return out
