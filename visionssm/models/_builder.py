"""How every family builds its models: the base class of all, what the parts of one share, and timm's builder."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_act_layer, get_norm_layer, trunc_normal_
from timm.models import build_model_with_cfg, named_apply
from torch import Tensor, nn

from .._timm_compat import FeatureGetterNet
from ..checkpoints import (
    check_routes,
    check_state_dict,
    classifier_names,
    fit,
    identify,
    inert_stand_ins,
    read,
    register_family,
    unwrap,
)
from ..checkpoints.layout import Layout
from ..errors import CheckpointError, nearest
from ._removal import remove, whole_shapes, without_removed

Model = TypeVar("Model", bound="VisionModel")


@dataclass(frozen=True)
class Kit:
    """What all parts of one model are made with.

    Attributes:
        act_layer: Activation; called without arguments.
        norm_layer: Norm; called with the channels.
        proj_drop: Dropout after projections.
        dd: Device and dtype of the parameters, as keyword arguments.
    """

    act_layer: Callable[..., nn.Module] = nn.GELU
    norm_layer: Callable[..., nn.Module] = nn.LayerNorm
    proj_drop: float = 0.0
    dd: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a block stands: its stage, its number over all stages, its channels and its rate of stochastic depth."""

    stage: int
    index: int
    dim: int
    drop_path: float


class FeatureGetter(FeatureGetterNet):
    """timm's wrapper of `features_only`, whose blocks can be recomputed in the backward like those of the others."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward instead of storing what they need."""
        self.model.set_grad_checkpointing(enable)


class VisionModel(nn.Module):
    """Base of all models.

    A subclass says what its original's training spared, how its published files are laid out, and which arguments of
    its base it has no use for.
    """

    layout: ClassVar[Layout]
    undecayed: ClassVar[tuple[str, ...]] = ()  # endings of parameters that weight decay spares, beside vectors
    unused: ClassVar[tuple[str, ...]] = ()  # arguments of the base class that have no meaning here
    linear_std: ClassVar[float | None] = 0.02  # of the truncated normal that every Linear begins with; None leaves it
    init_modes: ClassVar[tuple[str, ...]] = ("",)
    runs_in_sequence: ClassVar[bool] = False  # its children one after the other are its forward_features
    out_indices: ClassVar[int | tuple[int, ...]] = (0, 1, 2, 3)  # default levels of features_only

    def __init__(self) -> None:
        super().__init__()
        if self.layout.former:
            self.register_load_state_dict_pre_hook(_rename_former)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "layout" in cls.__dict__ and cls.layout.tell_tale:
            register_family(cls.__name__, cls.layout.tell_tale)

    def __prepare_scriptable__(self):
        raise NotImplementedError(
            f"{type(self).__name__} cannot be scripted: TorchScript is deprecated by PyTorch and knows no operators "
            "with Python kernels; use torch.compile, torch.export or torch.fx"
        )

    def check_arguments(self, unknown: Mapping[str, Any], weight_init: str, **shared: Any) -> None:
        """Refuse arguments that no class of the model has, or that its class has no use for.

        Raises:
            TypeError: an argument is unknown or unused; the message offers the nearest names.
            ValueError: `weight_init` is unknown.
        """
        signatures = [inspect.signature(base.__init__).parameters for base in type(self).__mro__]  # type: ignore[misc]
        known = {
            name: p
            for s in reversed(signatures)
            for name, p in s.items()
            if p.kind is p.KEYWORD_ONLY or p.default != p.empty
        }
        for name in self.unused:
            if name in shared and shared[name] != known[name].default:
                unknown = {**unknown, name: shared[name]}
            known.pop(name, None)
        for name in unknown:
            if name == "img_size" and not hasattr(self, "set_input_size"):
                raise TypeError(f"{type(self).__name__} takes images of any size: leave img_size out")
            raise TypeError(f"{type(self).__name__} has no argument {name!r}{nearest(name, known)}")
        if weight_init not in (*self.init_modes, "skip"):
            allowed = ", ".join(map(repr, (*self.init_modes, "skip")))
            raise ValueError(f"weight_init must be one of {allowed}, got {weight_init!r}")

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that the original training did not decay beyond biases and vectors."""
        return {name for name, _ in self.named_parameters() if self.undecayed and name.endswith(self.undecayed)}

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as the original does.

        Args:
            mode: "", or another one that the class knows.
            needs_reset: Also reset what initialised itself at construction.

        Raises:
            ValueError: an unknown mode.
        """
        if mode not in self.init_modes:
            raise ValueError(f"mode must be one of {', '.join(map(repr, self.init_modes))}, got {mode!r}")
        named_apply(partial(_init_module, linear_std=self.linear_std, needs_reset=needs_reset), self)
        self.init_own_weights(mode)

    def init_own_weights(self, mode: str) -> None:
        """What a class initialises in a way of its own, after all modules."""

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adapt converted weights to this model's size; a class may also refuse them here."""
        return state_dict

    @staticmethod
    def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: "VisionModel") -> dict[str, Tensor]:
        """Convert a checkpoint, published or our own and of any nesting, to the names and shapes of a model.

        Raises:
            CheckpointError: the weights do not fill the model exactly, were made for another number of routes, or are
                of a kind that the family's layout refuses.
        """
        source = unwrap(state_dict)
        shapes = whole_shapes(model)
        family = identify(source)
        foreign = family is not None and family not in {base.__name__ for base in type(model).__mro__}
        try:
            pruned = bool(getattr(model, "removed", ())) and source.keys() <= shapes.keys()  # its tell-tale may be gone
            out = dict(source) if pruned else model.layout.convert(source, shapes)
            out = model.adapt_state_dict(without_removed(out, model))
        except CheckpointError as error:
            if not foreign or str(family) in str(error):
                raise
            raise CheckpointError(f"the checkpoint's names are those of a {family} file: {error}") from error
        if not foreign:  # a file of another family is refused for what it is
            check_routes(out, model)
        check_state_dict(out, model, source)
        return out


def _init_module(module: nn.Module, name: str = "", *, linear_std: float | None, needs_reset: bool) -> None:
    """Truncated normal weights and no bias for a Linear; other modules reset themselves, if they need it."""
    if isinstance(module, nn.Linear) and linear_std is not None:
        trunc_normal_(module.weight, std=linear_std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif needs_reset and hasattr(module, "reset_parameters"):
        module.reset_parameters()


def _rename_former(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded, give names that earlier versions wrote their present form."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        present = prefix + module.layout.rename_former(name.removeprefix(prefix))
        if present != name:
            state_dict[present] = state_dict.pop(name)


def make_kit(act_layer, norm_layer, norm_eps: float | None, proj_drop: float, device, dtype) -> Kit:
    """Resolve names of layers; `norm_eps` None leaves a norm its own."""
    norm = get_norm_layer(norm_layer)
    return Kit(
        get_act_layer(act_layer),
        norm if norm_eps is None else partial(norm, eps=norm_eps),
        proj_drop,
        {"device": device, "dtype": dtype},
    )


def family_cfg(
    *,
    license: str,
    origin_url: str,
    paper_name: str,
    paper_ids: str,
    first_conv: str,
    classifier: str | tuple[str, ...],
    **family: Any,
) -> Callable[..., dict[str, Any]]:
    """A function that makes a variant's `default_cfg` from what is its own, over what its family shares."""
    shared = {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": classifier,
        "license": license,
        "origin_url": origin_url,
        "paper_name": paper_name,
        "paper_ids": paper_ids,
        **family,
    }
    return lambda **own: {**shared, **own}


def build_model(
    model_cls: type[Model],
    variant: str,
    pretrained: bool,
    kwargs: dict[str, Any],
    **args: Any,
) -> Model:
    """Build a registered variant through timm.

    Args:
        model_cls: The model class.
        variant: Name of the variant.
        pretrained: Load the weights that the variant's configuration, or its overlay, names.
        kwargs: What the caller asks for: arguments of timm's builder and of the model class, and `removed`, paths of
            parts to leave out (see `visionssm.models.removable`), by default those that a pruned file says it lacks;
            they override `args`.
        **args: The variant's arguments of the model class.

    Raises:
        CheckpointError: the weights do not fit, or the file is none.
        TypeError: the model class has no such argument.
        ValueError: a part to remove is none of the model's, see `remove`.
    """
    args |= kwargs
    removed = args.pop("removed", None)
    out_indices = args.pop("out_indices", model_cls.out_indices)
    overlay, cfg = args.get("pretrained_cfg_overlay") or {}, args.get("pretrained_cfg")
    file = None
    if not overlay.get("custom_load"):
        local = isinstance(cfg, dict) and cfg.get("source") != "local-dir"  # that file is a folder
        file = overlay.get("file") or (cfg.get("file") if local else None)
    if pretrained and file:
        # timm hands the state dict to the filter as it is, which reads the file by our rule instead
        args["pretrained_cfg_overlay"] = {**overlay, "state_dict": {"file": file}}
        removed = read(file).removed if removed is None else removed
    # whoever asks for a number of classes of their own expects a new classifier where the file has another
    classifier = "unused" if kwargs.get("features_only") else "keep" if kwargs.get("num_classes") is None else "anew"

    def construct(**own: Any) -> Model:
        return remove(model_cls(**own), removed or ())

    def convert(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
        state = fit(read(file).weights if file else state_dict, model, classifier)
        cfg = model.pretrained_cfg
        if file:
            cfg.pop("state_dict")
        # timm drops the classifier unless the configuration names the model's number of classes
        if any(name in state for name in classifier_names(model)):
            cfg["num_classes"] = model.num_classes
        elif classifier == "anew" and cfg["num_classes"] == model.num_classes:
            cfg["num_classes"] = 0
        return state

    feature_cfg: dict[str, Any] = dict(out_indices=out_indices, feature_cls=FeatureGetter)
    wanted = args.get("feature_cls")
    if wanted == "getter":
        args["feature_cls"] = FeatureGetter
    elif wanted in ("list", "dict"):
        if not model_cls.runs_in_sequence:
            raise ValueError(
                f"feature_cls={wanted!r} runs a model's children in turn, which {model_cls.__name__} "
                "cannot; take 'getter', 'hook' or 'fx'"
            )
        feature_cfg["flatten_sequential"] = True  # the stages are children of one module
    with inert_stand_ins():
        return build_model_with_cfg(
            construct,
            variant,
            pretrained,
            pretrained_filter_fn=convert,
            feature_cfg=feature_cfg,
            **args,
        )
