"The drawing helpers: what is drawn is what was given."

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from slowconv.show import (
    animate_conv,
    as_image,
    gif_palette,
    show_history,
    show_image,
    show_images,
    show_map,
    show_numbers,
    subplots,
)

sides = st.integers(5, 12)  # 3 and 4 could be channels, too


@given(h=sides, w=sides, c=st.sampled_from([1, 3, 4]))
def test_as_image_puts_channels_last(h, w, c):
    im = torch.rand(c, h, w)
    want = im[0] if c == 1 else im.permute(1, 2, 0)
    for form in (im, im.numpy(), im.permute(1, 2, 0), im.permute(1, 2, 0).numpy()):
        np.testing.assert_array_equal(as_image(form), want.numpy())
    for side in (1, 3, 4):  # a filter is grey: no row of three coloured pixels
        assert as_image(torch.rand(1, side, side)).shape == (side, side)


@pytest.mark.parametrize(
    "im",
    [
        torch.rand(6, 5, requires_grad=True),
        torch.rand(6, 5).bfloat16(),
        torch.rand(6, 5).half(),
        torch.rand(6, 5) > 0.5,
        torch.randint(0, 256, (6, 5), dtype=torch.uint8),
        np.random.default_rng(0).random((6, 5)),
    ],
)
def test_as_image_takes_every_dtype(im):
    got = as_image(im)
    assert got.shape == (6, 5)
    want = im.detach().float().numpy() if isinstance(im, torch.Tensor) else im
    np.testing.assert_allclose(got.astype(float), want)
    show_image(im).figure.canvas.draw()


def test_show_image_draws_grey_in_grey():
    im = torch.rand(1, 28, 28)
    ax = show_image(im, title="a boot")
    drawn = ax.images[0]
    np.testing.assert_array_equal(drawn.get_array(), im[0].numpy())
    assert drawn.get_cmap().name == "gray"
    assert ax.get_title() == "a boot"
    assert not ax.axison and show_image(im, frame=True).axison
    ax = subplots(1, 2, imsize=2)[1][1]
    assert show_image(im, ax, cmap="RdBu", vmin=-2, vmax=2) is ax
    assert (ax.images[0].get_cmap().name, ax.images[0].get_clim()) == ("RdBu", (-2, 2))
    assert tuple(ax.figure.get_size_inches()) == (4, 2)
    assert tuple(show_image(im, figsize=(3, 4)).figure.get_size_inches()) == (3, 4)


@pytest.mark.parametrize(
    "n, shape, want",
    [(5, {}, (1, 5)), (11, {}, (2, 8)), (5, {"nrows": 2}, (2, 3)), (7, {"ncols": 2}, (4, 2))],
)
def test_show_images_finds_rows_and_columns(n, shape, want):
    axs = show_images(torch.rand(n, 4, 4), title="all", **shape)
    grid = axs[0].get_gridspec()
    assert len(axs) == len(axs[0].figure.axes) == n and (grid.nrows, grid.ncols) == want
    assert axs[0].figure.get_suptitle() == "all"


@pytest.mark.parametrize("as_list", [True, False])
def test_show_images_shows_each_under_its_title(as_list):
    ims = torch.rand(3, 1, 6, 6)
    axs = show_images(list(ims) if as_list else ims, titles=["a", "b", "c"], figsize=(6, 2))
    assert [ax.get_title() for ax in axs] == ["a", "b", "c"]
    for ax, im in zip(axs, ims, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), im[0].numpy())
    assert tuple(axs[0].figure.get_size_inches()) == (6, 2)
    with pytest.raises(ValueError, match="2 titles for 3 images"):
        show_images(ims, titles=["a", "b"])


@pytest.mark.parametrize("shape", [(3, 3), (1, 3, 3), (2, 5)])
def test_show_numbers_writes_every_number(shape):
    a = torch.arange(torch.Size(shape).numel()).reshape(shape)
    texts = [t.get_text() for t in show_numbers(a).texts]
    assert texts == [str(v) for v in a.flatten().tolist()]


@pytest.mark.parametrize("show", [show_map, show_numbers])
def test_zero_is_white(show):
    drawn = show(torch.tensor([[-1.0, 0, 2]])).images[0]
    assert (drawn.to_rgba(0.0), drawn.get_clim()[0]) == ((1, 1, 1, 1), -drawn.get_clim()[1])


def test_each_error_names_the_function_that_was_called():
    bad = torch.zeros(2, 3, 4, 5)
    for f in (show_image, show_map, show_numbers):
        with pytest.raises(ValueError, match=rf"^{f.__name__}: expected .* \[2, 3, 4, 5\]"):
            f(bad)
    with pytest.raises(ValueError, match=r"^animate_conv: expected .* \[2, 3, 4, 5\]"):
        animate_conv(bad, torch.ones(2, 2))


def test_a_walk_has_a_picture_for_each_window():
    html = animate_conv(torch.rand(5, 6), torch.ones(3, 2), stride=2, padding=1).data
    gif = base64.b64decode(re.findall('base64,([^"]+)', html)[-1])
    with Image.open(io.BytesIO(gif)) as im:
        assert im.n_frames == 3 * 4
    assert 'alt="A 3x2 window' in html
    still = animate_conv(torch.rand(3, 2), torch.ones(3, 2)).data  # a walk of one window
    assert still.count("<details>") == still.count("</details>") == 1
    assert plt.get_fignums() == []


def test_greys_of_a_walk_stay_grey():
    greys = np.arange(256, dtype=np.uint8)
    ramp = Image.fromarray(greys[None]).convert("RGB").quantize(palette=gif_palette(), dither=0)
    drawn = np.asarray(ramp.convert("RGB"))[0].astype(int)
    assert np.ptp(drawn, axis=1).max() <= 1 and abs(drawn - greys[:, None]).max() <= 4
    assert (drawn[[0, 255]] == [[0] * 3, [255] * 3]).all()


def test_what_a_walk_has_not_reached_is_grey_and_its_padding_black():
    html = animate_conv(torch.ones(4, 4), torch.zeros(3, 3), padding=1).data
    with Image.open(io.BytesIO(base64.b64decode(re.findall('base64,([^"]+)', html)[-1]))) as im:
        ends = []
        for i in (0, im.n_frames - 1):
            im.seek(i)
            ends.append(np.asarray(im.convert("RGB")).min(2))
    not_yet, at_last = [((a > 210) & (a < 225)).mean() for a in ends]
    assert not_yet > 0.1 > 0.01 > at_last
    assert (ends[0] < 120).mean() > 0.1  # 20 black pixels around 16 white ones


def test_history_draws_itself():
    names = ("epoch", "training loss", "validation loss", "validation mae", "seconds")
    history = [dict(zip(names, (i, 2 - i, 2.5 - i, i, 3), strict=True)) for i in range(2)]
    axs = show_history(history)
    drawn = {line.get_label(): list(line.get_ydata()) for ax in axs for line in ax.lines}
    assert drawn == {
        "training loss": [2, 1],
        "validation loss": [2.5, 1.5],
        "validation mae": [0, 1],
    }
    assert [bar.get_height() for bar in axs[2].patches] == [3, 3]
    two = plt.subplots(1, 2)[1]
    assert show_history(history, two) is two and all(ax.lines for ax in two)
