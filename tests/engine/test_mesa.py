"""Learning from the averaged weights' predictions."""

import pytest
import timm
import torch
import torch.nn.functional as F

from visionssm.engine.training.tasks import Mesa, create_task


def task_of(mesa):
    torch.manual_seed(0)
    model = timm.create_model("test_vmamba", num_classes=5, drop_path_rate=0.0)
    task = create_task(model, {"smoothing": 0.0, "soft_targets": False}, torch.device("cpu"), mesa=mesa)
    task.setup_ema(decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return task.train()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_term_joins_at_its_epoch(temperature):
    task = task_of(Mesa(2.0, None, temperature))
    x, y = torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 2])
    task.begin_epoch(1, 8)
    plain = task(x, y)
    torch.testing.assert_close(plain["loss"], F.cross_entropy(plain["output"], y))
    task.begin_epoch(2, 8)
    found = task(x, y)
    with torch.no_grad():
        teacher = task.get_eval_model(ema=True)(x)
    target = (teacher / temperature).softmax(-1)
    extra = F.cross_entropy(found["output"] / temperature, target) - torch.special.entr(target).sum(-1).mean()
    assert extra > 1e-6
    torch.testing.assert_close(found["loss"], plain["loss"] + 2 * extra)
    found["loss"].backward()
    assert all(p.grad is None for p in task.get_trainable_module(ema=True).parameters())


def test_options(run, capsys):
    """A run with it goes on where it stopped; what it needs is said before work begins."""
    assert run(epochs=1, model_ema=True, mesa=1.0) == 0
    for more, message in [
        ({}, "--model-ema"),
        ({"model_ema": True, "model_ema_force_cpu": True}, "--model-ema-force-cpu"),
        ({"model_ema": True, "mesa_temperature": -1.0}, "above 0"),
        ({"model_ema": True, "kd_model_name": "test_vmamba"}, "two teachers"),
    ]:
        assert run("bad", mesa=1.0, **more) == 2
        assert message in capsys.readouterr().err
