"Inside the network: what a unit sees, what is never used, and the tables and pictures of it."

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from slowconv.convs import conv, get_model
from slowconv.inside import (
    layer_table,
    receptive_field,
    seen_pixels,
    show_confusion,
    top_patches,
)

# output, parameters, multiplications, receptive field, jump: the lesson's CNN, worked out by hand
by_hand = [
    ("4x14x14", 40, 7056, 3, 2),
    ("8x7x7", 296, 14112, 7, 4),
    ("16x4x4", 1168, 18432, 15, 8),
    ("16x2x2", 2320, 9216, 31, 16),
    ("10x1x1", 1450, 1440, 63, 32),
]


def cnn():
    return get_model().cpu()


# receptive_field and seen_pixels

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def layers(draw):
    "One layer from two channels to two."
    ks, stride = draw(pairs), draw(pairs)
    padding = tuple(draw(st.integers(0, k // 2)) for k in ks)
    kind = draw(st.sampled_from(["conv", "same", "valid", "square", "max", "mean", "pointwise"]))
    dilation = draw(pairs)
    if kind == "conv":
        return nn.Conv2d(2, 2, ks, stride, padding, dilation, groups=draw(st.integers(1, 2)))
    if kind == "same":
        return nn.Conv2d(2, 2, ks, padding="same", dilation=dilation)
    if kind == "valid":
        return nn.Conv2d(2, 2, ks, stride, "valid", dilation)
    if kind == "square":
        return conv(2, 2, ks=3, stride=stride[0])
    if kind == "max":
        return nn.MaxPool2d(ks, stride, padding, ceil_mode=draw(st.booleans()))
    if kind == "mean":
        return nn.AvgPool2d(ks, stride, padding)
    return draw(st.sampled_from([nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(), nn.Tanh()]))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(st.lists(layers(), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_formula_gradient_and_nan_agree(parts, random):
    "Whatever the weights, a NaN gets from a pixel to a unit exactly if the unit sees the pixel."
    h, w = 60, 55
    model = nn.Sequential(*parts).eval()
    with torch.no_grad():
        places = model(torch.zeros(1, 2, h, w)).shape[2:]
    size, jump, start = receptive_field(model, model)
    # a unit whose window lies within the image, so that nothing of it is cut off
    inside = [
        [i for i in range(n) if u + i * j >= 0 and u + i * j + r <= side]
        for n, r, j, u, side in zip(places, size, jump, start, (h, w), strict=True)
    ]
    assume(all(inside))
    row, col = (random.choice(i) for i in inside)
    seen = seen_pixels(model, model, row, col, (2, h, w))
    top, left = start[0] + row * jump[0], start[1] + col * jump[1]
    rows, cols = seen.nonzero().T
    assert (rows.min(), rows.max()) == (top, top + size[0] - 1)
    assert (cols.min(), cols.max()) == (left, left + size[1] - 1)

    def unit(mask):
        x = torch.rand(1, 2, h, w).masked_fill(mask, math.nan)
        with torch.no_grad():
            return model(x)[0, :, row, col]

    assert unit(~seen).isfinite().all()
    for i in {0, len(rows) // 2, len(rows) - 1}:
        one = torch.zeros(h, w, dtype=torch.bool)
        one[rows[i], cols[i]] = True
        assert unit(one).isnan().any()


def test_rows_and_columns_apart():
    model = nn.Sequential(
        nn.Conv2d(1, 1, (3, 5), (2, 1), (1, 0)), nn.Conv2d(1, 1, (1, 2), dilation=3)
    )
    assert receptive_field(model, model[0]) == ((3, 5), (2, 1), (-1, 0))
    assert receptive_field(model, model[1]) == ((3, 8), (2, 1), (-1, 0))
    seen = seen_pixels(model, model[1], 2, 4, (1, 20, 20))
    assert seen.any(1).nonzero().flatten().tolist() == [3, 4, 5]
    assert seen.any(0).nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9, 10, 11]


def test_a_part_of_a_part_is_a_layer_too():
    model = cnn()
    assert receptive_field(model, model[1][0]) == receptive_field(model, model[1])
    assert receptive_field(model, model[0][0]).size == (3, 3)


def test_closed_relus_and_weights_of_zero_hide_nothing():
    model = cnn()
    for p in model.parameters():
        nn.init.constant_(p, -1)
    assert seen_pixels(model, model[2], 1, 1).sum() == 15 * 15
    assert all((p == -1).all() for p in model.parameters())  # it asked a copy
    for p in model.parameters():
        nn.init.zeros_(p)
    assert seen_pixels(model, model[0], 1, 1).sum() == 3 * 3


def test_what_works_on_each_unit_by_itself_hides_nothing_in_training():
    norm = nn.BatchNorm2d(1)
    norm.running_mean += 100
    model = nn.Sequential(nn.Conv2d(1, 1, 3), norm, nn.ReLU(), nn.Dropout(0.99)).train()
    for mode in (True, False):
        assert seen_pixels(model.train(mode), model, 4, 4).sum() == 9


class OwnForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)

    def forward(self, x):
        return x + self.conv(x)


class Backwards(nn.Sequential):
    def forward(self, x):
        for m in reversed(self):
            x = m(x)
        return x


@pytest.mark.parametrize("f", [receptive_field, lambda *args: seen_pixels(*args, 0, 0)])
def test_errors_say_what_is_wrong(f):
    model = cnn()
    with pytest.raises(ValueError, match=r"Conv2d\(1, 4, .* is not in the model"):
        f(model, nn.Conv2d(1, 4, 3))
    with pytest.raises(TypeError, match="layer=3 is no module"):
        f(model, 3)
    with pytest.raises(ValueError, match="the window of a Flatten is not known"):
        f(model, model[5])
    own = nn.Sequential(nn.ReLU(), OwnForward(), nn.ReLU())
    with pytest.raises(ValueError, match="forward of its own"):
        f(own, own[1].conv)
    with pytest.raises(ValueError, match="the window of a OwnForward is not known"):
        f(own, own[2])
    backwards = Backwards(nn.Conv2d(1, 1, 3), nn.ReLU())
    with pytest.raises(ValueError, match="forward of its own"):
        f(backwards, backwards[0])
    round_ = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ValueError, match="padding_mode='circular'"):
        f(round_, round_[0])


@pytest.mark.parametrize("row, col", [(2, 0), (0, 2), (-1, 0)])
def test_a_unit_that_is_not_there(row, col):
    model = cnn()
    with pytest.raises(ValueError, match=rf"no unit \({row}, {col}\) in a map of 2x2"):
        seen_pixels(model, model[3], row, col)


def test_dilated_maximum_has_a_field_but_no_gradient_way():
    model = nn.Sequential(nn.MaxPool2d(2, 1, dilation=3))
    assert receptive_field(model, model[0]).size == (4, 4)
    with pytest.raises(ValueError, match="dilation=3 of a MaxPool2d"):
        seen_pixels(model, model[0], 0, 0)


# layer_table


def test_table_counts_the_multiplications_of_other_layers():
    "Against a count by hooks: how often a weight is used is the derivative of the output's sum."
    model = nn.Sequential(
        nn.Conv2d(2, 4, (1, 3), groups=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 3, 5)
    )
    table = layer_table(model, torch.rand(3, 2, 8, 8))
    # a filter of the grouped convolution sees one channel
    assert table["multiplications"].tolist() == [4 * 1 * 3 * 8 * 6, 0, 0, 48 * 5]
    assert table["receptive field"].tolist() == ["1x3", "2x4", "", ""]


def test_table_has_every_parameter():
    model = nn.Sequential(conv(1, 4), nn.BatchNorm2d(4), nn.Dropout(), conv(4, 8), nn.PReLU())
    table = layer_table(model, torch.rand(2, 1, 8, 8))
    assert table["layer"].tolist() == ["Conv2d", "BatchNorm2d", "Conv2d", "PReLU"]
    assert table["parameters"].sum() == sum(p.numel() for p in model.parameters())
    assert table["receptive field"].tolist() == [3, 3, 7, 7]


def test_table_of_a_model_with_a_forward_of_its_own():
    table = layer_table(OwnForwardSame(), torch.rand(1, 1, 5, 5))
    assert table["parameters"].tolist() == [10]
    assert table["receptive field"].tolist() == [""]


class OwnForwardSame(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


# top_patches


@pytest.mark.parametrize("i", range(4))
def test_top_patches_are_what_the_filters_saw(i, sample):
    "The field of a patch, alone, gives the same answer: checked where it lies within the image."
    model, xb = cnn(), sample["test"][0][:200, None].float() / 255
    patches, answers = top_patches(model, model[i], xb, k=3)
    nf, r = model[i][0].out_channels, by_hand[i][3]
    assert patches.shape == (nf, 3, 1, r, r) and answers.shape == (nf, 3)
    with torch.no_grad():
        maps = model[: i + 1](xb)
    want = maps.amax((2, 3)).T.topk(3).values
    torch.testing.assert_close(answers, want)
    if i == 0:  # zeros are what the first layer has beyond the image
        windows = patches.nan_to_num(0).flatten(0, 1)
        with torch.no_grad():
            got = F.conv2d(windows, model[0][0].weight, model[0][0].bias).relu().flatten(1)
        torch.testing.assert_close(got.unflatten(0, (nf, 3))[range(nf), :, range(nf)], answers)


def test_top_patches_beyond_the_image_are_nan():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False))
    nn.init.zeros_(model[0].weight)
    model[0].weight.data[0, 0, 1, 1] = 1
    xb = torch.zeros(2, 1, 4, 5)
    xb[0, 0, 0, 4] = 2  # in the upper right corner
    patches, answers = top_patches(model, model[0], xb, k=1)
    want = [[math.nan] * 3, [0, 2, math.nan], [0, 0, math.nan]]
    np.testing.assert_array_equal(patches[0, 0, 0].numpy(), want)
    assert answers.tolist() == [[2]]


def test_top_patches_leave_a_training_model_as_it_is():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    xb = torch.rand(9, 1, 8, 8)
    first, second = (top_patches(model, model[2], xb)[1] for _ in range(2))
    assert torch.equal(first, second) and model[2].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_top_patches_of_too_few_images():
    model = cnn()
    with pytest.raises(ValueError, match="k=8 patches of 3 images"):
        top_patches(model, model[0], torch.rand(3, 1, 28, 28))


# show_confusion


def test_show_confusion_writes_each_count_where_it_belongs():
    matrix = torch.tensor([[5, 1, 0], [2, 1234, 3], [0, 0, 9]])
    ax = show_confusion(matrix, ["a", "b", "c"])
    texts = {t.get_position(): t.get_text() for t in ax.texts}
    want = {(c, r): f"{n:,}" if n else "" for (r, c), n in np.ndenumerate(matrix.numpy())}
    assert texts == want
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [t.get_text() for t in labels] == ["a", "b", "c"]
    # the scale is that of the mistakes: the diagonal has no colour in it
    assert ax.images[0].get_clim() == (0, 3)
    assert ax.images[0].get_array().mask.tolist() == np.eye(3, dtype=bool).tolist()
    assert matrix[0, 0] == 5
    ax.figure.canvas.draw()
