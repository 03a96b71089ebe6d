"""The operators in place of compiled mmcv's: recorded results of the compiled ones, formulas, and who wins."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

pytest.importorskip("mmcv", reason="mmcv is not installed")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from visionssm.openmmlab import operators  # noqa: E402
from visionssm.openmmlab.requirements import check_installed  # noqa: E402

from .record_operators import RECORD, make_cases, run  # noqa: E402

stand_in = pytest.mark.skipif(operators.are_compiled(), reason="mmcv's operators are compiled here, and win")


def recorded(name):
    """Inputs and results of a case."""
    found = {
        k.removeprefix(f"{name}/"): v
        for k, v in load_file(RECORD).items()
        if k.startswith((f"{name}/input/", f"{name}/output/", f"{name}/grad/"))
    }
    inputs = {k.removeprefix("input/"): v for k, v in found.items() if k.startswith("input/")}
    return inputs, {k: v for k, v in found.items() if not k.startswith("input/")}


@pytest.mark.parametrize("name", list(make_cases()))
def test_results_and_gradients_are_those_of_compiled_mmcv(name):
    inputs, expected = recorded(name)
    results = run(make_cases()[name], inputs)
    assert results.keys() == expected.keys()
    for key, value in results.items():
        if value.dtype.is_floating_point:
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")
        else:
            assert torch.equal(value, expected[key]), key


def leaf(*shape, low=None, scale=1.0):
    x = torch.randn(*shape, dtype=torch.float64) if low is None else low + torch.rand(*shape, dtype=torch.float64)
    return (x * scale).requires_grad_()


ROIS = torch.tensor([[0, 1, 2, 30, 20], [1, 0, 0, 40, 40], [1, 5, 5, 6, 6.5], [0, -3, -3, 70, 60]], dtype=torch.float64)
SHAPES = torch.tensor([[4, 5], [2, 3]])


def differentiable():
    """Functions of mmcv with float64 arguments that have gradients."""
    from mmcv import ops
    from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
    from mmcv.ops.roi_align import roi_align

    torch.manual_seed(0)
    cases = {
        f"roi_align-{mode}-{aligned}-{ratio}": (
            lambda x, m=mode, a=aligned, r=ratio: roi_align(x, ROIS, (2, 3), 0.5, r, m, a),
            [leaf(2, 2, 9, 12)],
        )
        for mode in ("avg", "max")
        for aligned in (False, True)
        for ratio in (0, 2)
    }
    cases["roi_pool"] = (lambda x: ops.roi_pool(x, ROIS, (2, 3), 0.5), [leaf(2, 2, 9, 12)])
    maps, weight = leaf(2, 4, 5, 4), leaf(4, 2, 3, 3)
    offset, mask = leaf(2, 36, 5, 4), leaf(2, 18, 5, 4, low=0)
    cases["deform_conv2d"] = (lambda x, o, w: ops.deform_conv2d(x, o, w, 1, 1, 1, 2, 2), [maps, offset, weight])
    cases["modulated_deform_conv2d"] = (
        lambda x, o, m, w, b: modulated_deform_conv2d(x, o, m, w, b, 1, 1, 1, 2, 2),
        [maps, offset, mask, weight, leaf(4)],
    )
    target = torch.tensor([0, 1, 5, 4, 2, 5])
    cases["sigmoid_focal_loss"] = (
        lambda x: ops.sigmoid_focal_loss(x, target, 1.5, 0.3, None, "none"),
        [leaf(6, 5, scale=3)],
    )
    cases["multi_scale_deformable_attention"] = (
        lambda v, at, a: MultiScaleDeformableAttnFunction.apply(v, SHAPES, torch.tensor([0, 20]), at, a, 64),
        [leaf(1, 26, 2, 3), leaf(1, 3, 2, 2, 3, 2, low=-0.1, scale=1.2), leaf(1, 3, 2, 2, 3, low=0)],
    )
    return cases


@stand_in
@pytest.mark.parametrize("name", list(differentiable()))
def test_gradients_are_those_of_differences(name):
    function, inputs = differentiable()[name]
    assert torch.autograd.gradcheck(function, inputs)


@stand_in
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [n for n in differentiable() if "False-2" not in n])
def test_half_precision_is_float32_rounded(name, dtype):
    function, inputs = differentiable()[name]
    half = [x.detach().to(dtype).requires_grad_() for x in inputs]
    wide = [x.detach().float().requires_grad_() for x in half]
    results = []
    for arguments in (half, wide):
        y = function(*arguments)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype).to(y.dtype))
        results.append([y.detach(), *(x.grad for x in arguments)])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected.to(dtype), rtol=2e-2 if dtype == torch.bfloat16 else 2e-3, atol=1e-3)


@stand_in
def test_suppression_in_half_precision_and_of_nothing():
    from mmcv.ops import batched_nms, nms, soft_nms

    boxes, scores = torch.tensor([[0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10.0]]), torch.tensor([0.5, 0.75, 0.25])
    for dtype in (torch.float16, torch.bfloat16):
        dets, kept = nms(boxes.to(dtype), scores.to(dtype), 0.5)
        assert kept.tolist() == [1, 2] and dets.dtype == dtype
        assert soft_nms(boxes.to(dtype), scores.to(dtype), 0.5)[1].tolist() == [1, 2, 0]
    for empty in (nms, soft_nms):
        dets, kept = empty(torch.zeros(0, 4), torch.zeros(0), 0.5)
        assert dets.shape == (0, 5) and kept.shape == (0,)
    # more boxes than are treated at once
    many = torch.rand(300, 4) * 50
    many[:, 2:] += many[:, :2]
    labels, values = torch.randint(0, 3, (300,)), torch.rand(300)
    at_once, by_class = (
        batched_nms(many, values, labels, dict(type="nms", iou_threshold=0.5, split_thr=t))[1] for t in (1000, 10)
    )
    assert torch.equal(at_once, by_class)


@stand_in
def test_roi_pool_takes_the_largest_pixel_of_each_bin():
    from mmcv.ops import roi_pool

    torch.manual_seed(0)
    maps, (rows, columns), scale = torch.randn(2, 3, 9, 12), (2, 3), 0.5
    result = roi_pool(maps, ROIS.float(), (rows, columns), scale)
    for region, (image, x1, y1, x2, y2) in enumerate(ROIS.tolist()):
        high, wide = (y2 + 1 - y1) * scale / rows, (x2 + 1 - x1) * scale / columns
        for i in range(rows):
            for j in range(columns):
                inside = [
                    maps[int(image), :, y, x]
                    for y in range(9)
                    for x in range(12)
                    if y + 1 > y1 * scale + i * high and y < y1 * scale + (i + 1) * high
                    if x + 1 > x1 * scale + j * wide and x < x1 * scale + (j + 1) * wide
                ]
                expected = torch.stack(inside).amax(dim=0) if inside else torch.zeros(3)
                assert torch.equal(result[region, :, i, j], expected)


@stand_in
def test_focal_loss_is_torchvisions():
    from mmcv.ops import sigmoid_focal_loss
    from torchvision.ops import sigmoid_focal_loss as reference

    torch.manual_seed(0)
    x, target = torch.randn(40, 5, dtype=torch.float64) * 4, torch.randint(0, 6, (40,))
    ones = torch.nn.functional.one_hot(target, 6)[:, :5].double()
    for reduction in ("none", "mean", "sum"):
        expected = reference(x, ones, 0.25, 2.0, "none")
        expected = {"none": expected, "mean": expected.sum() / 40, "sum": expected.sum()}[reduction]
        torch.testing.assert_close(sigmoid_focal_loss(x, target, 2.0, 0.25, None, reduction), expected)
    extreme = torch.tensor([[1e4, -1e4]], requires_grad=True)
    sigmoid_focal_loss(extreme, torch.tensor([1]), 2.0, 0.25, None, "sum").backward()
    assert extreme.grad.isfinite().all()


@stand_in
def test_masked_convolution_is_the_convolution_where_the_mask_is():
    from mmcv.ops import MaskedConv2d

    torch.manual_seed(0)
    layer, maps = MaskedConv2d(3, 4, 3, padding=1), torch.randn(1, 3, 6, 7)
    mask = torch.rand(1, 6, 7) > 0.5
    torch.testing.assert_close(layer(maps, mask), layer(maps) * mask)


@stand_in
def test_attention_is_mmcvs_form_in_pytorch():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    _, (value, locations, weights) = differentiable()["multi_scale_deformable_attention"]
    result = MultiScaleDeformableAttnFunction.apply(value, SHAPES, torch.tensor([0, 20]), locations, weights, 64)
    expected = multi_scale_deformable_attn_pytorch(value, SHAPES, locations, weights)
    torch.testing.assert_close(result, expected)


@stand_in
@pytest.mark.parametrize("name", ["roi_align", "deform_conv2d"])
def test_compiled_graphs_take_them_whole(name):
    from mmcv.ops import DeformConv2d, RoIAlign

    torch.manual_seed(0)
    layer = RoIAlign(3, 0.5, 2) if name == "roi_align" else DeformConv2d(4, 2, 3, padding=1)
    x = torch.randn(2, 4, 8, 8)
    other = ROIS.float() if name == "roi_align" else torch.randn(2, 18, 8, 8)
    whole = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(x, other), layer(x, other))


@stand_in
def test_what_is_not_there_names_itself_and_the_remedy():
    from mmcv.ops import box_iou_rotated, sigmoid_focal_loss

    with pytest.raises(NotImplementedError, match="'box_iou_rotated' needs mmcv compiled .*make openmmlab-compiled"):
        box_iou_rotated(torch.rand(2, 5), torch.rand(2, 5))
    with pytest.raises(NotImplementedError, match="class weights"):
        sigmoid_focal_loss(torch.rand(2, 3), torch.tensor([0, 1]), 2.0, 0.25, torch.ones(3))


@stand_in
@pytest.mark.parametrize("kind", ["working", "of another PyTorch", "missing"])
def test_compiled_operators_win_and_broken_ones_are_named(kind, tmp_path, monkeypatch, request):
    import mmcv

    if kind == "working":
        (tmp_path / "_ext.py").write_text("def nms():\n    return 'compiled'\n")
    elif kind == "missing":
        metadata = tmp_path / "onedl_mmcv-2.3.6.dist-info/METADATA"
        metadata.parent.mkdir()
        metadata.write_text("Metadata-Version: 2.1\nName: onedl-mmcv\nVersion: 2.3.6\n")
    else:
        (tmp_path / f"_ext{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF of another PyTorch")
    said = []
    monkeypatch.setattr(operators.loading, "print_log", lambda text, **how: said.append(text))
    monkeypatch.syspath_prepend(tmp_path)
    mmcv.__path__.append(str(tmp_path))
    request.addfinalizer(lambda: mmcv.__path__.remove(str(tmp_path)))
    monkeypatch.setattr(mmcv, "_ext", sys.modules["mmcv._ext"])
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    if kind == "working":
        check_installed("mmdet")
        assert operators.are_compiled() and sys.modules["mmcv._ext"].nms() == "compiled"
        assert len(said) == 1 and "operators are the compiled ones" in said[0]
        return
    with pytest.raises(operators.BrokenOperatorsError) as error:
        check_installed("mmdet")
    if kind == "missing":
        assert "onedl-mmcv 2.3.6 is installed, but its compiled operators (mmcv/_ext) are missing" in str(error.value)
        assert "pip uninstall -y onedl-mmcv && pip install --no-deps mmcv-lite" in str(error.value)
    else:
        assert "do not load with PyTorch" in str(error.value) and "compile them anew" in str(error.value)
