"""Receptive fields, relevance and contributions on the pico variants: what must hold whatever the model."""

import pytest
import timm
import torch
from torch import nn

from tests.families import PICO
from visionssm.analysis.contributions import contributions, rollout
from visionssm.analysis.hidden_attention import class_token_relevance, hidden_attention
from visionssm.analysis.receptive_field import central_square, receptive_field
from visionssm.analysis.relevance import RULES, _Rules, relevance
from visionssm.analysis.token_dynamics import token_dynamics

# what relevance has no rule for; a model that is refused for anything else is a fault
REFUSED = {"test_grootv": "exp"}
ADDED = ("bias", "pos_embed", "pos_embed_cls", "cls_token", ".rows", ".columns", ".registers_value")


def make(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, dtype=torch.float64).eval()
    for parameter in model.parameters():  # fresh mixers hardly reach the logits
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model


def image(name):
    size = timm.models.get_pretrained_cfg(name).input_size
    return torch.randn(1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PICO)
def test_relevance_is_conserved(name):
    """logit = relevance of the pixels + what added parameters hold."""
    model, x = make(name), image(name)
    expected = model(x)
    model.requires_grad_(False)
    added = [p for n, p in model.named_parameters() if n.endswith(ADDED) and not n.endswith("dt_bias")]
    for p in added:
        p.requires_grad_()
    x = x.requires_grad_()
    if name in REFUSED:
        with pytest.raises(NotImplementedError, match=f"no rule for {REFUSED[name]}"), _Rules(RULES, model):
            model(x)
        return
    with _Rules(RULES, model):
        logits = model(x)
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)
    grads = torch.autograd.grad(logits[0, 2], [x, *added], allow_unused=True)
    parts = [(t * g).sum() for t, g in zip([x, *added], grads, strict=True) if g is not None]
    assert abs(float(sum(parts) - logits[0, 2])) < 1e-10 * max(1.0, abs(float(logits[0, 2])))


def test_relevance_of_a_class_and_its_errors():
    model, x = timm.create_model("test_vim", num_classes=5), image("test_vim").float()
    found = relevance(model.train(), x, 3)
    assert found.values.shape == (1, 17) and model.training
    torch.testing.assert_close(found.values.sum(1) + found.rest, found.logits[:, 3])
    with pytest.raises(ValueError, match="from 0 to 4"):
        relevance(model, x, 5)
    with pytest.raises(ValueError, match="no classifier"):
        relevance(timm.create_model("test_vim", num_classes=0), x)
    with pytest.raises(ValueError, match="level must be"):
        relevance(timm.create_model("test_vmamba"), x, level="tokens")


class Strange(nn.Module):
    """Calls a function of one or two tensors of the model's data."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function, name",
    [
        (lambda x: torch.hypot(x, x + 1), "hypot"),
        (lambda x: torch.special.expit(x), "special_expit"),
        (lambda x: x @ x.mT, "__matmul__|matmul"),
        (lambda x: 1 / x, "__rdiv__"),
        (lambda x: x / x.sum(), "__truediv__|div"),
        (lambda x: torch.addcmul(x, x, x), "addcmul"),
        (lambda x: torch.cdist(torch.stack([x, x])[0], x), "cdist"),
    ],
)
def test_relevance_refuses_what_it_has_no_rule_for_and_says_where(function, name):
    model = make("test_vim")
    model.blocks[1].mixer = nn.Sequential(Strange(function))
    model.blocks[1].mixer.forward = lambda x, *rest: model.blocks[1].mixer[0](x)
    with pytest.raises(NotImplementedError, match=rf"no rule for ({name}) .* called in blocks\.1\.mixer\.0$"):
        relevance(model, image("test_vim"))


def test_relevance_passes_what_is_proportional_in_any_writing():
    model = make("test_vim")
    told = relevance(model, image("test_vim"), 1)
    for same in (
        lambda x: torch.stack([x, x], 1).sum(1) / 2,
        lambda x: torch.where(torch.ones_like(x) > 0, x, 0.0),
        lambda x: torch.cat(x.mT.mT.split(1, 1), dim=1),
        lambda x: x[:, torch.argsort(x.detach()[0, :, 0])][:, torch.argsort(torch.argsort(x.detach()[0, :, 0]))],
    ):
        original = model.finish
        model.finish = lambda y, same=same, original=original: original(same(y))
        torch.testing.assert_close(relevance(model, image("test_vim"), 1).values, told.values)
        model.finish = original


@pytest.mark.parametrize("name", ["test_vim", "test_vmamba", "test_localvim", "test_localvmamba", "test_groupmamba"])
def test_contributions_sum_to_the_output(name):
    model = make(name)
    if hasattr(model, "embed"):
        x, grid = model.embed(image(name))
        x = x.detach().double()
        layer = lambda s: model.run_block(0, s, grid)  # noqa: E731
    else:
        layer = model.stages[1].blocks[0]
        x = torch.randn(1, 5, 4, layer.mixer.in_proj.in_features if hasattr(layer.mixer, "in_proj") else 32).double()
    found = contributions(layer, x, reduce=None)
    output = layer(x).reshape(1, found.tensor.shape[1], -1)
    torch.testing.assert_close(found.tensor.sum(2) + found.rest, output, atol=1e-9, rtol=1e-9)
    shares = contributions(layer, x, rows=[0, 3]).matrix
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 2, dtype=shares.dtype))


def test_hidden_attention_is_the_scan():
    model = timm.create_model("test_vmamba").eval()
    mixer = model.stages[0].blocks[0].mixer
    x = torch.randn(2, 3, 4, 20)
    seen = {}
    mixer.ssm.register_forward_hook(lambda module, args, out: seen.update(u=args[0], y=out))
    matrix = hidden_attention(mixer, x, with_skip=True)
    assert matrix.shape[:2] == (2, 4) and matrix.shape[-1] == 12
    y = torch.einsum("bkdij,bjd->bid", matrix, seen["u"].detach())
    torch.testing.assert_close(y, seen["y"].detach(), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="Mamba's mixers"):
        hidden_attention(mixer, x, with_gate=True)


def test_the_field_of_a_convolution_is_its_kernel():
    class Convolution(nn.Conv2d):
        def forward_intermediates(self, x, indices, intermediates_only):
            return [self(x)]

    conv = Convolution(3, 2, 3, padding=1)
    nn.init.ones_(conv.weight), nn.init.ones_(conv.bias)
    field = receptive_field(conv, torch.rand(2, 3, 21, 17))
    assert field.shape == (21, 17) and int((field > 0).sum()) == 9 and central_square(field, 0.99) == (3, 9 / (21 * 17))
    with pytest.raises(ValueError, match="outside the feature map"):
        receptive_field(conv, torch.rand(1, 3, 8, 8), position=(9, 0))
    with pytest.raises(ValueError, match="no image"):
        receptive_field(conv, [])


def test_a_model_that_leaves_out_tokens():
    torch.manual_seed(0)
    model = timm.create_model("test_vim", num_classes=5, pruning=((1, 0.5),)).eval()
    x = torch.randn(1, 3, 64, 64)
    for explain in (relevance, rollout, class_token_relevance):
        with pytest.raises(ValueError, match="leaves out tokens after blocks 1.*without pruning"):
            explain(model, x)
    found = token_dynamics(model, x)
    assert [layer.name for layer in found] == [f"blocks.{i}" for i in range(4)]
    assert "forward_scored" not in vars(model.blocks[1])


def test_relevance_of_a_model_that_merges_tokens():
    torch.manual_seed(0)
    model = timm.create_model("test_mamband", num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(relevance(model, x).logits, model(x).detach())
