"""Restoration from the command line: runs that go on where they stopped, figures, tiles, errors in a sentence."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from visionssm.commands import export, restore, train_restoration
from visionssm.commands._recipes import apply_recipe
from visionssm.engine.data.restoration import Degradation, TrainPatches, pair_up, to_image, to_tensor, whole_pair
from visionssm.engine.inference.restoration import fidelity, load_restorer
from visionssm.engine.training.stopping import StopRequest
from visionssm.errors import UserError
from visionssm.restoration import create_model, tiled

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "restoration").glob("*.yaml"))
MODEL = ["--model", "test_mambair", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Smooth random colour images, one of sides that are no multiples of 2."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, sizes in (("train", [(40, 44), (36, 36)]), ("validation", [(33, 38)])):
        (folder / split).mkdir()
        for number, (height, width) in enumerate(sizes):
            coarse = Image.fromarray(generator.integers(0, 255, (6, 6, 3), dtype=np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / split / f"{number}.png")
    return folder


def train(photos, output, *more):
    options = ["--degradation", "bicubic", "--patch-size", "8", "--batch-size", "2", "--epoch-steps", "3"]
    options += ["--epochs", "1", "--workers", "0", "--model-ema"]
    return train_restoration.main([*MODEL, *options, "--data-dir", str(photos), "--output", str(output), *more])


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(photos, tmp_path, monkeypatch):
    assert train(photos, tmp_path / "whole") == 0
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "agreed", lambda self, world, device: asked.append(1) or len(asked) == 2)
        assert train(photos, tmp_path / "cut") == 143
    assert list((tmp_path / "cut").glob("recovery-0-2*"))
    assert train(photos, tmp_path / "cut", "--resume", "auto") == 0
    whole, cut = (torch.load(tmp_path / run / "last.pth.tar", weights_only=False) for run in ("whole", "cut"))
    for part in ("state_dict", "state_dict_ema"):
        for name, value in whole[part].items():
            assert torch.equal(value, cut[part][name]), name
    assert "eval_psnr" in (tmp_path / "cut" / "summary.csv").read_text()
    assert (tmp_path / "cut" / "curve.png").stat().st_size > 1000


def test_restores_files_from_a_runs_checkpoint(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run") == 0
    checkpoint = str(tmp_path / "run" / "last.pth.tar")
    low = tmp_path / "low"
    low.mkdir()
    degraded, sharp = whole_pair(photos / "validation" / "0.png", None, Degradation("bicubic"), 3, 2)
    to_image(degraded).save(low / "0x2.png")
    common = ["--checkpoint", checkpoint, "--device", "cpu", "--output", str(tmp_path / "out")]
    given = [str(low), *common, "--references", str(photos / "validation"), "--results-file", str(tmp_path / "a.csv")]
    assert restore.main(given) == 0
    with Image.open(tmp_path / "out" / "0x2.png") as image:
        restored = to_tensor(image)
    assert restored.shape == (3, 32, 38)
    psnr, ssim = fidelity(restored, sharp, 2)
    assert f"PSNR {psnr:.2f} dB, SSIM {ssim:.4f}; before" in capsys.readouterr().out
    exported = tmp_path / "run.pt2"
    assert export.main(["--checkpoint", str(tmp_path / "run"), "--img-size", "8", "--output", str(exported)]) == 0
    program, model = torch.export.load(exported).module(), load_restorer(None, str(tmp_path / "run"))[1]
    images = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program(images), model(images), rtol=1e-4, atol=1e-5)
    made = [str(photos / "validation"), *common, "--degradation", "bicubic", "--picture", str(tmp_path / "a.png")]
    assert restore.main(made) == 0
    assert f"PSNR {psnr:.2f} dB, SSIM {ssim:.4f}; before" in capsys.readouterr().out
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert restore.main([str(low / "0x2.png"), *common, "--tile", "12", "--overlap", "4"]) == 0
    with Image.open(tmp_path / "out" / "0x2.png") as image:
        assert image.size == (38, 32)


def test_tiles_join_without_a_seam():
    image = torch.rand(1, 3, 37, 50)
    counted = []

    def enlarge(piece):
        assert max(piece.shape[2:]) <= 16
        return F.interpolate(piece, scale_factor=2)

    joined = tiled(enlarge, image, 16, 5, lambda done, total: counted.append((done, total)))
    torch.testing.assert_close(joined, F.interpolate(image, scale_factor=2))
    assert counted[-1] == (15, 15)
    assert torch.equal(tiled(lambda piece: piece, image, 64, 0), image)
    with pytest.raises(ValueError, match="below tile"):
        tiled(enlarge, image, 16, 16)
    with pytest.raises(ValueError, match="no integer scale"):
        tiled(lambda piece: piece[:, :, :-1], image, 16, 2)


def test_figures_are_those_of_their_definitions():
    truth = torch.full((3, 20, 24), 100 / 255)
    restored = truth.clone()
    restored[1] += 10 / 255  # green weighs 128.553 / 255 in luma
    assert fidelity(restored, truth)[0] == pytest.approx(20 * math.log10(255 / (10 * 128.553 / 255)), abs=1e-6)
    assert fidelity(restored, truth, space="rgb")[0] == pytest.approx(
        20 * math.log10(255 / (10 / math.sqrt(3))), abs=1e-6
    )
    assert fidelity(truth, truth) == (math.inf, 1.0)
    restored[:, 0] = 1  # left out with the border
    restored[1] = truth[1]
    assert fidelity(restored, truth, 1) == (math.inf, 1.0)
    with pytest.raises(UserError, match="11 x 11 pixels"):
        fidelity(truth[:, :12], truth[:, :12], 2)


def test_degradations_are_what_they_say(photos):
    image = torch.full((3, 64, 64), 0.5)
    noisy = Degradation.parse("noise=25")(image, 1, 0)
    assert float((noisy - image).std()) == pytest.approx(25 / 255, rel=0.03)
    assert torch.equal(noisy, Degradation.parse("noise=25")(image, 1, 0))
    assert Degradation.parse("bicubic")(image, 4, 0).shape == (3, 16, 16)
    sharp = to_tensor(Image.open(photos / "train" / "0.png"))
    errors = [float((Degradation("jpeg", quality)(sharp, 1, 0) - sharp).abs().mean()) for quality in (5, 95)]
    assert errors[0] > 2 * errors[1] > 0
    for text, words in (("blur", "bicubic, noise=25"), ("noise", "needs a number"), ("jpeg=0", "out of range")):
        with pytest.raises(UserError, match=words):
            Degradation.parse(text)
    with pytest.raises(UserError, match="does not go with a model of scale 1"):
        Degradation("bicubic").check_scale(1)


def test_patches_are_cut_at_the_same_place(photos):
    files = [(path, None) for path in sorted((photos / "train").iterdir())]
    args = dict(channels=3, scale=2, patch=8, seed=3)
    patches = TrainPatches(files, 10, degradation=Degradation("bicubic"), **args)
    low, sharp = patches[4, 1, 0]
    assert low.shape == (3, 8, 8) and sharp.shape == (3, 16, 16)
    again = F.interpolate(sharp[None], (8, 8), mode="bicubic", antialias=True)[0].clamp(0, 1)
    torch.testing.assert_close(low[:, 2:-2, 2:-2], again[:, 2:-2, 2:-2], atol=0.6 / 255, rtol=0)  # rounded to 8 bits
    assert torch.equal(patches[4, 1, 0][0], low) and not torch.equal(patches[4, 2, 0][0], low)


def test_partners_are_found_by_name(tmp_path):
    sharp = [tmp_path / "a.png", tmp_path / "b.png"]
    assert pair_up(sharp, [tmp_path / "bx3.png", tmp_path / "ax3.jpg"], 3)[0] == (sharp[0], tmp_path / "ax3.jpg")
    with pytest.raises(UserError, match="needs one degraded image named b or bx3, found none"):
        pair_up(sharp, [tmp_path / "a.png"], 3)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_options_and_models(path):
    parser = train_restoration.build_parser()
    apply_recipe(parser, path.stem, "restoration")
    args = parser.parse_args([])
    model = create_model(args.model, device="meta", **args.model_kwargs)
    if args.degradation:
        Degradation.parse(args.degradation).check_scale(model.scale)
    assert max(args.decay_milestones) < args.epochs or args.sched != "multistep"


def test_errors_name_the_remedy(photos, tmp_path, capsys):
    torch.save(create_model("test_mambair").state_dict(), tmp_path / "own.pth")
    torch.save(create_model("test_eamamba_sr").state_dict(), tmp_path / "other.pth")
    images, out = str(photos / "validation"), ["--device", "cpu", "--output", str(tmp_path / "out")]
    own = [*out, "--checkpoint", str(tmp_path / "own.pth"), "--model"]
    for options, words in (
        ([*out, "--checkpoint", str(tmp_path / "own.pth")], "name it with --model"),
        ([*own, "test_mambai"], "did you mean 'test_mambair'"),
        ([*own, "test_mambair", "--model-kwargs", "scal=2"], "did you mean 'scale'"),
        ([*own, "test_mambair", "--references", str(photos / "train" / "1.png")], "no image of the same name"),
        ([*own, "test_mambair", "--degradation", "noise=5"], "does not go with a model of scale 2"),
        ([*own, "test_mambair", "--overlap", "300"], "--overlap must be"),
        ([*own, "test_mambair", "--picture", "a.png"], "--references or --degradation"),
        ([*own, "test_mambair", "--output", images], "choose another --output"),
        ([*out, "--checkpoint", str(tmp_path / "other.pth"), "--model", "test_mambair"], "does not fit the model"),
    ):
        assert restore.main([images, *options]) == 2
        assert words in capsys.readouterr().err, options
    assert not (tmp_path / "out").exists()
    torch.save(create_model("test_mambair_unet").state_dict(), tmp_path / "unet.pth")
    Image.new("RGB", (9, 3)).save(tmp_path / "small.png")
    unet = ["--checkpoint", str(tmp_path / "unet.pth"), "--model", "test_mambair_unet"]
    assert restore.main([str(tmp_path / "small.png"), *out, *unet]) == 2
    assert "sides of at least 4; got 3 x 9" in capsys.readouterr().err
    assert train(photos, tmp_path / "run", "--patch-size", "30") == 2
    assert "too small for patches of 60" in capsys.readouterr().err
    assert train(photos / "train", tmp_path / "run") == 2
    assert "does not exist" in capsys.readouterr().err
    assert train_restoration.main([*MODEL, "--data-dir", str(photos), "--output", str(tmp_path / "run")]) == 2
    assert "needs the folders target and input" in capsys.readouterr().err
