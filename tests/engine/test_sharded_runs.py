"""Sharded training: the losses of an ordinary run, checkpoints of all processes, and what is refused."""

import copy
import csv

import pytest
import timm
import torch
from conftest import assert_same_weights, load
from launching import Processes, flags, run_all
from timm.optim import create_optimizer_v2
from timm.task import distillation

from visionssm.checkpoints import CheckpointError
from visionssm.commands import consolidate, train
from visionssm.engine.data import processes
from visionssm.engine.training import sharding
from visionssm.engine.training.sharded_checkpoints import sharded_checkpoints
from visionssm.engine.training.updater import whole

# the same samples give the same losses whoever reads them: nothing is drawn by process
PLAIN = dict(no_aug=True, drop_path=0.0, log_interval=1, sched_on_updates=True, opt="adamw")


def losses(folder):
    rows = list(csv.DictReader((folder / "summary.csv").open()))
    return [float(row[name]) for row in rows for name in row if name.endswith("_loss")]


def test_one_process_trains_stores_and_continues_like_an_ordinary_run(run):
    """Bit for bit; the file made at the end continues an ordinary run, and that one's file a sharded run."""
    options = PLAIN | {"model_ema": True, "clip_grad": 1.0, "grad_accum_steps": 2}
    assert run("plain", **options) == 0
    assert run("sharded", **options, fsdp=True) == 0
    assert losses(run.folder / "plain") == pytest.approx(losses(run.folder / "sharded"), abs=1e-6)
    names = {path.name for path in (run.folder / "sharded").iterdir()}
    assert {"last.pth.tar", "model_best.pth.tar", "checkpoint-1.sharded", "checkpoint-0.sharded"} <= names
    assert not any(name.endswith(".tmp") for name in names)
    plain, sharded = (load(run.folder / name / "last.pth.tar") for name in ("plain", "sharded"))
    assert plain["optimizer"]["param_groups"] == sharded["optimizer"]["param_groups"]
    for key in ("state_dict", "state_dict_ema"):
        assert list(plain[key]) == list(sharded[key])
        for name, value in plain[key].items():
            torch.testing.assert_close(value, sharded[key][name], atol=1e-5, rtol=0)
    for name in ("plain", "sharded"):
        options |= {"resume": run.folder / name / "last.pth.tar", "epochs": 3}
        assert run(f"{name}-on", **options, fsdp=name == "plain") == 0
    assert losses(run.folder / "plain-on") == pytest.approx(losses(run.folder / "sharded-on"), abs=1e-5)


@pytest.mark.parametrize(
    "options, found",
    [
        ({"opt": "adamp"}, "--fsdp does not go with --opt adamp"),
        ({"clip_grad": 0.1, "clip_mode": "agc"}, "take norm"),
        ({"torchcompile": "eager"}, "--torchcompile"),
        ({"kd_model_name": "test_resnet", "kd_distill_type": "feature"}, "take logit"),
        ({"model_ema": True, "model_ema_force_cpu": True}, "leave --model-ema-force-cpu out"),
        ({"fsdp_offload": True}, "there is no GPU here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_needs_whole_weights_is_refused_before_the_first_step(run, capsys, options, found):
    assert run(fsdp=True, **options) == 2
    error = capsys.readouterr().err
    assert found in error and len(error.strip().splitlines()) == 1


def test_consolidation_and_a_damaged_checkpoint(run, capsys):
    assert run(fsdp=True, epochs=1) == 0
    (path,) = sharded_checkpoints(run.folder / "run")
    for given in (path, run.folder / "run"):
        assert consolidate.main(["--checkpoint", str(given), "--output", str(run.folder / "file.pth.tar")]) == 0
        assert_same_weights(run.folder / "file.pth.tar", run.folder / "run" / "last.pth.tar")
    with pytest.raises(CheckpointError, match="tools/consolidate.py makes a file"):
        load(path)
    (run.folder / "run" / "last.pth.tar").unlink()
    (data,) = path.glob("*.safetensors")
    data.write_bytes(data.read_bytes()[:-100])
    assert run(fsdp=True, epochs=1, resume="auto") == 2
    captured = capsys.readouterr()
    assert f"checkpoint {path} is damaged or incomplete" in captured.out
    assert "is readable; start anew with --overwrite" in captured.err
    assert (
        consolidate.main(["--checkpoint", str(run.folder / "run"), "--output", str(run.folder / "other.pth.tar")]) == 2
    )
    assert "holds no sharded checkpoint that is readable" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["test_vmamba", "test_vim", "test_mamba2d"])
@pytest.mark.parametrize("size", [2, 4])
def test_losses_equal_those_of_ddp_and_of_one_process(image_folder, tmp_path, model, size):
    """To 1e-5, with the same images in every step; 12 images for validation give the processes unequal batches."""
    options = PLAIN | dict(data_dir=image_folder, model=model, clip_grad=1.0, weight_decay=0.05)
    run_all(flags(**options, output=tmp_path / "one", batch_size=8), 1, tmp_path / "one.log")
    for name, sharded in (("ddp", False), ("fsdp", True)):
        argv = flags(**options, output=tmp_path / name, batch_size=8 // size, fsdp=sharded)
        run_all([*argv, "--validation-batch-size", "5"], size, tmp_path / f"{name}.log")
    one = losses(tmp_path / "one")
    assert len(one) == 4
    assert losses(tmp_path / "ddp") == pytest.approx(one, abs=1e-5)
    assert losses(tmp_path / "fsdp") == pytest.approx(one, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{"grad_checkpointing": True}, {"amp": True, "amp_dtype": "bfloat16"}, {"amp": True, "amp_dtype": "float16"}],
)
def test_recomputation_and_mixed_precision_equal_those_of_ddp(image_folder, tmp_path, more):
    options = PLAIN | dict(data_dir=image_folder, batch_size=4, model_ema=True, **more)
    for name, sharded in (("ddp", False), ("fsdp", True)):
        run_all(flags(**options, output=tmp_path / name, fsdp=sharded), 2, tmp_path / f"{name}.log")
    exact = "grad_checkpointing" in more
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), abs=1e-5 if exact else 1e-2)


DRAWN = dict(mixup=0.4, reprob=0.3, drop_path=0.2, log_interval=1)


@pytest.mark.slow
@pytest.mark.parametrize("drawn, before, after", [(True, 2, 2), (False, 2, 4), (False, 4, 1)])
def test_killed_and_resumed_on_as_many_and_on_other_processes(image_folder, tmp_path, drawn, before, after):
    """Bit for bit on as many, with everything drawn at random; to 1e-5 on others, with nothing drawn by process."""
    options = (DRAWN if drawn else PLAIN) | dict(model_ema=True, fsdp=True, data_dir=image_folder)
    options |= dict(recovery_interval=1, resume="auto")
    uncut, cut = tmp_path / "whole", tmp_path / "cut"
    run_all(flags(**options, output=uncut, batch_size=8 // before), before, tmp_path / "whole.log")
    group = Processes(flags(**options, output=cut, batch_size=8 // before), before, tmp_path / "cut.log")
    group.until(lambda: any(cut.glob("recovery-0-*.sharded")))
    group.kill()
    run_all(flags(**options, output=cut, batch_size=8 // after), after, tmp_path / "cut.log")
    assert "continuing" in (tmp_path / "cut.log.0").read_text()
    if before == after:
        assert_same_weights(uncut / "last.pth.tar", cut / "last.pth.tar")
        assert losses(cut) == losses(uncut)
    else:
        assert losses(cut) == pytest.approx(losses(uncut), abs=1e-5)


def train_with_an_untrained_teacher(argv):
    """The teacher is built with its initial weights, the same in every run."""
    create = distillation.create_model

    def initial(*args, **options):
        torch.manual_seed(0)
        return create(*args, **(options | {"pretrained": False}))

    distillation.create_model = initial
    return train.main(argv)


@pytest.mark.slow
def test_distillation_from_logits(image_folder, tmp_path):
    options = PLAIN | dict(data_dir=image_folder, batch_size=4, kd_model_name="test_resnet", epochs=1)
    for name, sharded in (("ddp", False), ("fsdp", True)):
        argv = flags(**options, output=tmp_path / name, fsdp=sharded)
        group = Processes(argv, 2, tmp_path / f"{name}.log", train_with_an_untrained_teacher)
        assert group.wait() == [0, 0], group.text()
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), abs=1e-5)


def step_with_every_optimizer(argv):
    """Three updates of a sharded model and of a whole one; run by two processes."""
    device, world = processes.start("cpu", "gloo", 60)
    images, labels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    torch.manual_seed(0)
    base = timm.create_model("test_plainmamba", num_classes=3, img_size=32)
    for name in sharding.OPTIMIZERS:
        results = []
        for model in (copy.deepcopy(base), sharding.shard(copy.deepcopy(base), device, world)):
            optimizer = create_optimizer_v2(model, name, lr=1e-2, weight_decay=0.05)
            for _ in range(3):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
            results.append([whole(p).detach() for p in model.parameters()])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=name)
        print(name, "agrees")
    return 0


@pytest.mark.slow
def test_optimizers_update_shares_as_they_update_whole_weights(tmp_path):
    group = Processes([], 2, tmp_path / "log", step_with_every_optimizer)
    assert group.wait() == [0, 0], group.text()
    assert group.text().count("agrees") == len(sharding.OPTIMIZERS)
