"animate_conv: a picture for each window, and files that can be opened."

import base64
import io
import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from slowconv.animate import animate_conv, write_sum
from slowconv.kernels import top_edge

unfilled = (217, 217, 217)


def pictures(gif):
    with Image.open(io.BytesIO(gif)) as im:
        return [np.array(f.convert("RGB")).astype(int) for f in ImageSequence.Iterator(im)]


def near(picture, color):
    return (np.abs(picture - color) <= 6).all(2)


@settings(max_examples=8)
@given(
    h=st.integers(4, 7),
    w=st.integers(4, 7),
    kh=st.integers(1, 4),
    kw=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
)
def test_a_picture_for_each_window(h, w, kh, kw, stride, padding):
    image, kernel = torch.rand(h, w), torch.randn(kh, kw)
    n = F.conv2d(image[None, None], kernel[None, None], stride=stride, padding=padding).numel()
    frames = pictures(animate_conv(image, kernel, stride, padding))
    assert len(frames) == n
    left = [near(f[:, f.shape[1] // 2 :], unfilled).sum() for f in frames]
    assert all(a > b for a, b in zip(left, left[1:], strict=False))  # the map fills
    assert left[-1] < 0.02 * left[0] or n == 1


def test_the_window_walks_in_reading_order():
    frames = pictures(animate_conv(torch.rand(6, 6), top_edge))
    orange = [near(f[:, : f.shape[1] // 2], (255, 127, 14)).nonzero() for f in frames]
    middles = [(rows.mean(), cols.mean()) for rows, cols in orange]
    for i, ((row, col), (next_row, next_col)) in enumerate(zip(middles, middles[1:], strict=False)):
        if i % 4 < 3:
            assert next_col > col + 5 and abs(next_row - row) < 3
        else:
            assert next_col < col - 5 and next_row > row + 5


@pytest.mark.parametrize("ks", [1, 2, 3, 5])
def test_the_sum_that_is_written_is_the_convolution(ks):
    window, kernel = torch.rand(ks, ks), torch.randn(ks, ks)
    text = write_sum(window, kernel)
    want = F.conv2d(window[None, None], kernel[None, None]).item()
    assert float(text.split("=")[1]) == pytest.approx(want, abs=0.0051)
    terms = [(float(a), float(b)) for a, b in re.findall(r"([\d.]+) x +(-?[\d.]+)", text)]
    np.testing.assert_allclose([a for a, _ in terms], window.flatten(), atol=0.0051)
    np.testing.assert_allclose([b for _, b in terms], kernel.flatten(), atol=0.0051)


def test_many_products_are_only_summed():
    window, kernel = torch.ones(6, 6), torch.full((6, 6), 0.5)
    assert write_sum(window, kernel) == "the sum of 36 products = 18.00"


def test_it_shows_itself_in_a_notebook():
    gif = animate_conv(torch.rand(8, 8), top_edge, stride=2, padding=1)
    src = re.search(r'src="data:image/gif;base64,([^"]+)"', gif._repr_html_()).group(1)
    assert base64.b64decode(src) == bytes(gif)
    assert repr(gif).startswith("GIF of 16 pictures") and repr(gif) in gif._repr_html_()
    assert len(src) < 500_000
    assert plt.get_fignums() == []


def test_it_plays_again_and_rests_on_the_whole_map():
    with Image.open(io.BytesIO(animate_conv(torch.rand(4, 4), top_edge, fps=4))) as im:
        assert im.info["loop"] == 0
        durations = [f.info["duration"] for f in ImageSequence.Iterator(im)]
    assert durations == [250, 250, 250, 2000]


@pytest.mark.parametrize("name", ["walk.gif", "WALK.GIF"])
def test_saved_as_gif(tmp_path, name):
    gif = animate_conv(torch.rand(4, 5), top_edge, path=tmp_path / name)
    assert (tmp_path / name).read_bytes() == gif
    with Image.open(tmp_path / name) as im:
        assert im.format == "GIF" and im.n_frames == 6


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="no ffmpeg on this machine")
def test_saved_as_mp4(tmp_path):
    path = tmp_path / "walk.mp4"
    gif = animate_conv(torch.rand(4, 5), top_edge, path=str(path), fps=2)
    ask = "ffprobe -v error -count_frames -show_entries stream=width,height,nb_read_frames -of csv=p=0"
    shape = subprocess.run([*ask.split(), path], check=True, capture_output=True, text=True).stdout
    width, height, n = map(int, shape.split(","))
    assert n == 6 and path.read_bytes()[4:8] == b"ftyp"  # an MP4, whatever its name
    assert (height, width) == tuple(side // 2 * 2 for side in pictures(gif)[0].shape[:2])


def test_mp4_without_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="ffmpeg.*apt-get install ffmpeg"):
        animate_conv(torch.rand(4, 4), top_edge, path=tmp_path / "walk.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "image, kwargs, part",
    [
        ((4, 4), {"path": "walk.avi"}, "path='walk.avi'; expected a name in .gif or .mp4"),
        ((2, 4), {}, r"has 0 windows in an image \[2, 4\]"),
        ((40, 40), {}, "has 1,444 windows"),
        ((4, 4), {"stride": 0}, "stride=0"),
        ((4, 4), {"padding": -1}, "padding=-1"),
        ((4, 4), {"fps": 0}, "fps=0"),
        ((3, 8, 8), {}, "expected one channel"),
        ((2, 8, 8), {}, r"\[2, 8, 8\] is no image"),
    ],
)
def test_errors_say_what_is_wrong(image, kwargs, part):
    with pytest.raises(ValueError, match=part):
        animate_conv(torch.rand(image), top_edge, **kwargs)


def test_takes_pil_images_and_learned_filters():
    im = Image.fromarray((torch.rand(5, 5) * 255).byte().numpy())
    filt = torch.nn.Conv2d(1, 1, 3).weight[0]
    assert len(pictures(animate_conv(im, filt))) == 9
