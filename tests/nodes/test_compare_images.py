"""Compare Images: figures, map and sheet, batches, sizes and alpha, in the real host."""

import time

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from svdquant_pack.nodes.comparison_sheet import BACKGROUND, HEAT, Pair, _shorten, draw_pair, heat_map
from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.picture_metrics import psnr, ssim


@pytest.fixture
def compare(host):
    return lambda reference, image, **settings: host.call(
        "SVDQuantCompareImages", reference=reference, image=image, **settings
    )


def pictures(count=1, height=40, width=60):
    return torch.rand(count, height, width, 3)


def test_the_report_holds_the_figures(compare):
    x = pictures()
    y = (x + 0.05 * torch.randn_like(x)).clamp(0, 1)
    _, _, report = compare(x, y)
    first = report.splitlines()[0]
    assert first.startswith(f"1: PSNR {float(psnr(y, x)):.2f} dB   SSIM {float(ssim(y, x)):.4f}")
    assert f"mean difference {100 * float((x - y).abs().mean()):.3g} %" in first
    assert f"largest difference {100 * float((x - y).abs().max()):.3g} %" in first


def test_the_map_shows_where_they_differ(compare):
    x = torch.full((1, 40, 60, 3), 0.5)
    y = x.clone()
    y[:, 10:20, 30:50] += 0.08
    _, difference, report = compare(x, y)
    assert difference.shape == (1, 40, 60, 3)
    assert torch.equal(difference.sum(dim=-1)[0] > 0, (y != x).any(dim=-1)[0])
    assert "difference map: x 10" in report  # the largest of the scales at which 0.08 is below full
    assert torch.allclose(difference[0, 15, 40], heat_map(torch.tensor(0.08), 10.0), atol=1e-5)


def test_a_given_scale_is_kept(compare):
    x = pictures()
    weak = compare(x, x * 0.9, difference_scale=1.0)
    strong = compare(x, x * 0.9, difference_scale=3.0)
    assert "x 3" in strong[2] and float(strong[1].mean()) > float(weak[1].mean())


def test_equal_images_are_called_identical(compare):
    x = pictures(2)
    sheet, difference, report = compare(x, x)
    assert report.splitlines()[:3] == [
        "1: identical, largest difference 0 %",
        "2: identical, largest difference 0 %",
        "mean: all identical   SSIM 1.0000   mean difference 0 %",
    ]
    assert not difference.any() and len(sheet) == 2


def test_the_sheet_shows_both_pictures(compare):
    x, y = torch.zeros(1, 400, 400, 3), torch.zeros(1, 400, 400, 3)
    x[..., 0], y[..., 2] = 1.0, 1.0
    sheet = compare(x, y)[0][0]
    corner = sheet[sheet.shape[0] // 2]  # a line of pixels through all three panels
    colours = [tuple(round(255 * v) for v in pixel.tolist()) for pixel in corner[:: sheet.shape[1] // 100]]
    order = list(dict.fromkeys(colours))
    assert order.index((255, 0, 0)) < order.index((0, 0, 255)) and BACKGROUND in order
    assert sheet.shape[1] > 3 * 400


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (20, 100), (700, 300)])
def test_panels_fit_their_sheet(compare, height, width):
    sheet = compare(pictures(1, height, width), pictures(1, height, width), reference_name="a name " * 40)[0]
    assert sheet.ndim == 4 and sheet.shape[-1] == 3 and sheet.isfinite().all()
    side = 1 if width > 2 * height else 2  # wide pictures stand below each other
    assert sheet.shape[side] > 3 * (height if side == 1 else width)


def test_one_reference_serves_a_batch_and_the_other_way_round(compare):
    one, many = pictures(1), pictures(3)
    there, back = compare(one, many)[2], compare(many, one)[2]
    assert there.splitlines()[:3] == back.splitlines()[:3] and there.splitlines()[3].startswith("mean: PSNR")
    single = compare(one, many[2:])[2].splitlines()[0]
    assert there.splitlines()[2].split(":")[1:] == single.split(":")[1:]


def test_batches_that_do_not_pair_are_refused(compare):
    with pytest.raises(SVDQuantError, match="2 references and 3 images cannot be paired"):
        compare(pictures(2), pictures(3))


def test_other_sizes_are_resized_and_said(compare):
    small = pictures(1, 20, 30)
    large = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    _, difference, report = compare(small, large)
    assert difference.shape == (1, 20, 30, 3)
    assert "image is 60 x 40 pixels, reference 30 x 20; image was resized" in report
    # halving what was doubled brings about the same picture back
    assert float(report.split("PSNR ")[1].split(" dB")[0]) > 20


def test_other_sizes_are_refused_if_asked(compare):
    with pytest.raises(SVDQuantError, match="image is 60 x 40 pixels, reference 30 x 20"):
        compare(pictures(1, 20, 30), pictures(1, 40, 60), other_size="refuse")


def test_transparent_images_lie_on_white(compare):
    white = torch.ones(1, 32, 32, 3)
    clear = torch.cat((torch.zeros(1, 32, 32, 3), torch.zeros(1, 32, 32, 1)), dim=-1)
    report = compare(white, clear)[2]
    assert "1: identical" in report and "image: transparent parts are compared on white" in report


def test_grey_images_and_strange_ones(compare):
    grey = torch.rand(1, 32, 32, 1)
    assert "identical" in compare(grey, grey.expand(1, 32, 32, 3))[2]
    with pytest.raises(SVDQuantError, match="image has 5 channels"):
        compare(grey, torch.rand(1, 32, 32, 5))


def test_colours_of_the_map():
    ends = heat_map(torch.tensor([0.0, 0.25, 0.5, 9.0]), 2.0)
    assert torch.allclose(
        ends * 255, torch.tensor([HEAT[0], HEAT[2], HEAT[4], HEAT[4]], dtype=torch.float32), atol=1e-3
    )


def test_the_node_shows_its_sheets(host):
    node = host.nodes.NODE_CLASS_MAPPINGS["SVDQuantCompareImages"]
    shown = node.execute(pictures(2), pictures(2)).ui["images"]
    assert len(shown) == 2


@pytest.mark.parametrize(("height", "width"), [(4000, 1), (1, 4000), (1, 1), (3000, 30), (100_000, 2)])
def test_odd_sizes_take_a_sheet_of_bounded_size(compare, height, width):
    """A picture of one column was enlarged 320 times in both directions, to 22 GB."""
    x = pictures(1, height, width)
    sheet, difference, _ = compare(x, x)
    assert difference.shape == (1, height, width, 3)
    assert sheet.numel() < 6e7 and sheet.shape[1] > height and sheet.shape[2] > width


@pytest.mark.parametrize("length", [500, 5000, 100_000])
def test_long_names_are_cut_at_once(length):
    pair = Pair(*pictures(2, 64, 64), torch.rand(64, 64), 10.0, 0.5, 0.1, 0.2)
    started = time.perf_counter()
    sheet = draw_pair(pair, ("x" * length, "i" * length), 1.0)
    assert time.perf_counter() - started < 2  # 5000 letters took 82 s
    assert sheet.shape == draw_pair(pair, ("x", "i"), 1.0).shape


@pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "\x00", "\ud800", "\t\t", "\u202eabc", "日本語✨🎉", "", "ा" * 900])
def test_every_name_can_be_drawn(compare, name):
    x = pictures(1, 16, 16)
    assert len(compare(x, x, reference_name=name, image_name=name)[0]) == 1


def test_a_name_keeps_what_fits():
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    font = ImageFont.load_default(size=16)
    for width in (0, 5, 40, 100, 333):
        cut = _shorten(draw, "a name of some length that does not fit", font, width)
        longer = "a name of some length that does not fit"[: len(cut)] + "…"
        assert cut == "…" or draw.textlength(cut, font) <= width < draw.textlength(longer, font) or "…" not in cut


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.rand(8, 8, 3), r"image is \(8, 8, 3\), expected \(pictures, height, width, colours\)"),
        (torch.rand(1, 2, 8, 8, 3), r"image is \(1, 2, 8, 8, 3\), expected"),
        (torch.rand(1, 0, 8, 3), "image has pictures without pixels"),
        (torch.rand(1, 8, 0, 3), "image has pictures without pixels"),
        (torch.rand(1, 8, 8, 0), "image has pictures without pixels"),
        (None, "image is None, and takes an IMAGE"),
        (torch.full((1, 8, 8, 3), float("nan")), "image: 192 of its 192 values are NaN or infinite"),
        (torch.full((1, 8, 8, 3), float("inf")), "image: 192 of its 192 values are NaN or infinite"),
    ],
    ids=["3-d", "5-d", "no rows", "no columns", "no colours", "none", "nan", "inf"],
)
def test_what_is_no_picture_is_refused(compare, image, words):
    with pytest.raises(SVDQuantError, match=words):
        compare(pictures(1, 8, 8), image)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
def test_a_scale_that_is_none_is_refused(compare, scale):
    with pytest.raises(SVDQuantError, match=r"difference_scale is .*, and takes a number from 0 to 1000"):
        compare(pictures(1, 8, 8), pictures(1, 8, 8), difference_scale=scale)


def test_the_page_gets_both_pictures_for_its_slider(host):
    node = host.nodes.NODE_CLASS_MAPPINGS["SVDQuantCompareImages"]
    shown = node.execute(pictures(2), pictures(2)).ui
    assert len(shown["a_images"]) == len(shown["b_images"]) == 1 and "PSNR" in shown["text"][0]
