"""The roads of three people, as their guides have them, with small models in the place of large ones."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from visionssm.commands._dispatch import main
from visionssm.digits.images import write_classification

ROOT = Path(__file__).parents[2]
SMALL = "--model test_vmamba --no-pretrained --img-size 32 --lr 3e-3 --epochs 4 --device cpu --workers 0"


def commands(document, heading):
    """The commands of the first block of shell below a heading, those of installation aside."""
    text = (ROOT / document).read_text()
    block = re.search(r"```bash\n(.*?)```", text[text.index(heading) :], re.DOTALL)[1]
    lines = block.replace("\\\n", " ").strip().splitlines()
    assert len(lines) <= 5, "at most five commands"
    return [shlex.split(line)[1:] for line in lines if line.startswith("visionssm ")]


def draw_photos(folder, rng, count=16):
    for kind in ("circle", "square", "cross"):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (80, 60), tuple(map(int, rng.integers(0, 90, 3))))
            draw, ink = ImageDraw.Draw(image), tuple(map(int, rng.integers(150, 255, 3)))
            x, y = rng.integers(20, 40), rng.integers(15, 25)
            if kind == "cross":
                draw.line((x - 15, y + 10, x + 25, y + 10), ink, 6)
                draw.line((x + 5, y - 12, x + 5, y + 30), ink, 6)
            else:
                (draw.ellipse if kind == "circle" else draw.rectangle)((x, y, x + 24, y + 24), ink)
            image.save(folder / kind / f"{number}.jpg", quality=95)


def test_the_readme_has_the_guides_commands():
    assert commands("README.md", "## Your own photos") == commands("docs/photos.md", "# Your own photos")


@pytest.mark.slow
@pytest.mark.filterwarnings("error::FutureWarning")
def test_from_photos_to_an_exported_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw_photos(tmp_path / "photos", np.random.default_rng(0))
    small = {"train": SMALL, "export": ""}
    for command in commands("docs/photos.md", "# Your own photos"):
        more = small.get(command[0], "--device cpu" + " --workers 0 --results-file v.json" * (command[0] == "validate"))
        assert main([*command, *more.split()]) == 0, capsys.readouterr().err
    (row,) = json.loads((tmp_path / "v.json").read_text())
    assert row["images"] == 9 and (tmp_path / "work/report.html").is_file()

    # the program of the guide, on every photo that was held out, against predict's answers and validate's number
    held = held_out_photos(tmp_path / "photos")
    assert (
        main(["predict", *map(str, held), "--checkpoint", "work/photos", "--device", "cpu", "--results-file", "p.csv"])
        == 0
    )
    predicted = [line["class_1"] for line in csv.DictReader((tmp_path / "p.csv").open())]
    text = (ROOT / "docs/photos.md").read_text()
    program = re.search(r"```python\n(import json.*?)```", text, re.DOTALL)[1]
    answers = []
    for path in held:
        capsys.readouterr()
        exec(program.replace("one.jpg", str(path)), {})
        answers.append(capsys.readouterr().out.strip())
    assert answers == predicted
    right = sum(answer == path.parent.name for answer, path in zip(answers, held, strict=True))
    assert row["top1"] == pytest.approx(100 * right / 9, abs=1e-2)


def held_out_photos(folder):
    from visionssm.engine.data.datasets import open_dataset

    return [Path(p) for p in open_dataset("", str(folder), "validation", val_fraction=0.2).filenames(absolute=True)]


@pytest.mark.slow
def test_from_a_scan_order_to_its_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (ROOT / "docs/scans.md").read_text()
    (tmp_path / "my_order.py").write_text(re.search(r"`my_order.py`:\n\n```python\n(.*?)```", text, re.DOTALL)[1])
    for command in commands("docs/scans.md", "`my_order.py`:"):
        more = "--epochs 1 --workers 0".split() if command[0] == "train" else []
        assert main([*command, *more]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "scan=my_columns" in told and (tmp_path / "work/compare.png").is_file()


def test_digits_are_found_where_the_guide_puts_them(tmp_path):
    """The data of the second walk is what its recipe expects."""
    write_classification(tmp_path / "digits", size=32)
    assert {p.name for p in (tmp_path / "digits").iterdir()} >= {"train", "validation"}
