"""The benchmarks' shapes, timer and comparison of commits; what they measure is no test's business."""

import importlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_timer_tells_slow_from_fast(benchmarks):
    calls = {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.002)}
    seconds = benchmarks("timing").seconds_in_turn(calls, threads=1, rounds=2)
    assert seconds["slow"] > 0.02 and seconds["slow"] > 2 * seconds["fast"] > 0


@pytest.mark.parametrize("own_input", [False, True])
def test_step_loop_is_the_scan(benchmarks, own_input):
    shapes, cpu_scan = benchmarks("scan_shapes"), benchmarks("cpu_scan")
    shape = shapes.ScanShape("small", 4, 3, 5, 2, 0, "cross", own_input=own_input, batch=2)
    inputs = shapes.make_inputs(shape, torch.float32)
    expected = cpu_scan.selective_scan(**inputs, backend="reference")
    torch.testing.assert_close(cpu_scan.step_loop(*inputs.values()), expected, rtol=1e-4, atol=1e-5)


def test_scan_orders_are_compared_with_the_first(benchmarks, monkeypatch, capsys):
    cpu_scan, shapes = benchmarks("cpu_scan"), benchmarks("scan_shapes")
    monkeypatch.setattr(cpu_scan, "VMAMBA_TINY", (shapes.ScanShape("small", 4, 3, 8, 1, 2, "cross"),) * 2)
    if cpu_scan.backend_unavailable("native", "cpu") is None:
        head, _, first, other, *_ = cpu_scan.compare_orders(["cross", "snake"], threads=1, repeats=1)
        cells = [cell.strip() for cell in first.strip("|").split("|")]
        assert cells[:2] == ["small", "`cross`"] and cells[3] == cells[5] == "1.00" and "`snake`" in other
        monkeypatch.setattr("sys.argv", ["cpu_scan.py", "--orders", "cross", "raster"])
        with pytest.raises(SystemExit):
            cpu_scan.main()
        assert "as many routes each, found {'cross': 4, 'raster': 1}" in capsys.readouterr().err


@pytest.mark.slow
def test_smallest_variants_are_of_every_kind(benchmarks):
    from visionssm.models import kind_of, list_kinds

    assert [kind_of(name) for name in benchmarks("cpu_models").smallest()] == list(list_kinds())


def test_the_zoo_is_drawn_with_every_name_in_the_clear(benchmarks, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    zoo = benchmarks("zoo")
    table = "| model | parameters | GMACs | threads | batch | ms per image |\n|---|---|---|---|---|---|\n"
    table += "| vmamba_tiny_s1l8 | 30M | 4.9 | 1 | 1 | 150.5 |\n| vmamba_tiny_s1l8 | 30M | 4.9 | 2 | 1 | 90 |\n"
    table += "| vim_tiny | 7M | 1.8 | 1 | 1 | 97.5 |\n"
    (tmp_path / "times.md").write_text(table)
    assert zoo.times(table) == {"vmamba_tiny_s1l8": 150.5, "vim_tiny": 97.5}
    found = {v.name: v for v in zoo.variants(ROOT / "model_cards", zoo.times(table))}
    tiny = found["vmamba_tiny_s1l8"]
    assert (tiny.family, tiny.side, tiny.top1, tiny.milliseconds) == ("VMamba", 224, 82.6, 150.5)
    assert tiny.gmacs == pytest.approx(4.88, abs=0.01) and len(found) > 70
    figure = zoo.draw(list(found.values()))
    figure.draw_without_rendering()
    for panel, least in zip(figure.axes, (15, 2), strict=True):
        boxes = [text.get_window_extent() for text in panel.texts]
        assert len(boxes) >= least
        assert not any(zoo.overlap(a, b) > 1 for i, a in enumerate(boxes) for b in boxes[:i])
    assert zoo.main(["--times", str(tmp_path / "times.md"), "--output", str(tmp_path / "zoo.png")]) == 0
    assert "not timed" in capsys.readouterr().out and (tmp_path / "zoo.png").stat().st_size > 10000
    with pytest.raises(SystemExit, match="cpu_models"):
        zoo.main(["--times", str(tmp_path / "absent.md")])


IN_CHECKOUT = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="commits are compared in a checkout")


@IN_CHECKOUT
@pytest.mark.slow
def test_a_commit_is_compared_with_itself():
    def git_trees():
        return subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    before = git_trees()
    command = [
        sys.executable,
        ROOT / "benchmarks" / "compare.py",
        "HEAD",
        "--shapes",
        "VMamba-T stage 2",
        "--rounds",
        "1",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^\| VMamba-T stage 2 \| (.*?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", result.stdout, re.M)
    assert [row[0] for row in rows] == ["forward", "forward + backward"]
    assert all(float(number) > 0 for row in rows for number in row[1:])
    assert git_trees() == before


@IN_CHECKOUT
@pytest.mark.parametrize(
    "arguments, found", [(["no-commit"], "no-commit"), (["HEAD", "--shapes", "x"], "no shape matches; known: VMamba-T")]
)
def test_unknown_commits_and_shapes_are_refused(benchmarks, arguments, found):
    with pytest.raises(SystemExit, match=found):
        benchmarks("compare").main(arguments)


def test_true_relevance_is_the_most_faithful(benchmarks):
    """Of a linear model the products of weights and pixels are what each pixel does."""
    pytest.importorskip("captum")
    faithfulness = benchmarks("faithfulness")
    torch.manual_seed(0)
    weight, x, target = torch.randn(16, dtype=torch.float64), torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)

    def model(images):
        logit = images.flatten(1).double() @ weight
        return torch.stack([logit, -logit], 1)

    black, true = torch.zeros_like(x), (x.flatten(1) * weight).view(3, 4, 4)
    areas = {}
    for name, scores in {"true": true, "random": torch.rand(3, 4, 4), "reversed": -true}.items():
        curves = (
            faithfulness.curve(model, x, black, scores, target),
            faithfulness.curve(model, black, x, scores, target),
        )
        torch.testing.assert_close(curves[0][0], model(x).softmax(1)[:, 0])
        torch.testing.assert_close(curves[0][-1], torch.full((3,), 0.5, dtype=torch.float64))
        areas[name] = [faithfulness.area(rows) for rows in curves]
    assert (areas["true"][0] <= areas["random"][0]).all() and (areas["random"][0] <= areas["reversed"][0]).all()
    assert (areas["true"][1] >= areas["random"][1]).all() and (areas["random"][1] >= areas["reversed"][1]).all()
