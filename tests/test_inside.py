"Inside the network: what a unit sees, and the tables and pictures of it."

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from slowconv.best import Residual, get_best_model
from slowconv.convs import conv, get_model
from slowconv.inside import (
    layer_table,
    receptive_field,
    seen_pixels,
    shift_accuracy,
    shift_images,
    show_confusion,
    show_shifts,
    top_patches,
)

# output, parameters, multiplications, receptive field: the lesson's CNN, worked out by hand
by_hand = [
    ("4x14x14", 40, 7056, (3, 2, -1)),
    ("8x7x7", 296, 14112, (7, 4, -3)),
    ("16x4x4", 1168, 18432, (15, 8, -7)),
    ("16x2x2", 2320, 9216, (31, 16, -15)),
    ("10x1x1", 1450, 1440, (63, 32, -31)),
]


def cnn():
    return get_model().cpu()


def by_rule(field, rows, cols, h, w):
    "What `seen_pixels` should be: each unit's window, without what lies beyond the image."
    seen = torch.zeros(rows, cols, h, w, dtype=torch.bool)
    for row, col in np.ndindex(rows, cols):
        top, left = (max(field.start + field.jump * i, 0) for i in (row, col))
        bottom, right = (field.start + field.jump * i + field.size for i in (row, col))
        seen[row, col, top:bottom, left:right] = True
    return seen


# receptive_field and seen_pixels


def test_rule_on_the_lessons_network():
    fields = [receptive_field([(3, 2, 1)] * n) for n in range(1, 6)]
    assert fields == [row[3] for row in by_hand]
    assert receptive_field([]) == (1, 1, 0)


@pytest.mark.parametrize("n", range(1, 6))
def test_rule_and_measurement_agree_on_the_lessons_network(n):
    seen, side = seen_pixels(cnn()[:n]), (14, 7, 4, 2, 1)[n - 1]
    assert torch.equal(seen, by_rule(receptive_field([(3, 2, 1)] * n), side, side, 28, 28))


def test_rule_and_measurement_agree_on_the_best_network():
    "Branches and all: the 3x3 kernels of its layers, read off by hand."
    layers = [(3, 1, 1), (3, 2, 1), *[(3, 1, 1)] * 4, (3, 2, 1), *[(3, 1, 1)] * 2]
    best = get_best_model(trained=False)[1:]  # Normalize comes first
    assert sum(isinstance(m, Residual) for m in best) == 6
    for n, side in ((2, 14), (4, 14), (9, 7)):
        seen = seen_pixels(best[:n])
        assert torch.equal(seen, by_rule(receptive_field(layers[:n]), side, side, 28, 28))


@st.composite
def layers(draw):
    "A layer from two channels to two, and its kernel size, stride and padding."
    ks, stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, ks // 2))
    kind = draw(st.sampled_from([nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d]))
    args = (2, 2) if kind is nn.Conv2d else ()
    return kind(*args, ks, stride, padding), (ks, stride, padding)


between = st.sampled_from(
    [nn.BatchNorm2d(2), nn.ReLU(), nn.ReLU6(), nn.Dropout(), nn.Tanh(), nn.GELU()]
)


@given(st.lists(layers(), min_size=1, max_size=3), between, st.randoms(use_true_random=False))
def test_rule_and_measurement_agree(drawn, m, random):
    "On units whose window lies within the image. A stride larger than a kernel leaves holes in it."
    sides = 30, 26
    seen = seen_pixels(nn.Sequential(*[f for layer, _ in drawn for f in (layer, m)]), (2, *sides))
    size, jump, start = receptive_field([numbers for _, numbers in drawn])
    inside = [
        [i for i in range(n) if 0 <= start + i * jump <= side - size]
        for n, side in zip(seen.shape, sides, strict=False)
    ]
    assume(all(inside))
    row, col = (random.choice(i) for i in inside)
    for at, axis in ((row, 1), (col, 0)):
        pixels = seen[row, col].any(axis).nonzero()
        first = start + at * jump
        assert (pixels.min(), pixels.max()) == (first, first + size - 1)


def test_closed_relus_and_weights_of_zero_hide_nothing():
    model = cnn()
    for value in (-1, 0):
        for p in model.parameters():
            nn.init.constant_(p, value)
        assert seen_pixels(model[:3])[1, 1].sum() == 15 * 15
        assert all((p == value).all() for p in model.parameters())  # it asked a copy


def test_batchnorm_and_dropout_hide_nothing_in_training():
    norm = nn.BatchNorm2d(1)
    model = nn.Sequential(nn.Conv2d(1, 1, 3), norm, nn.ReLU(), nn.Dropout(0.99)).train()
    before = norm.running_mean.clone()
    assert seen_pixels(model, (1, 9, 9))[4, 4].sum() == 9
    assert model.training and torch.equal(norm.running_mean, before)


def test_a_mean_over_the_map_sees_everything():
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d(1))
    assert seen_pixels(model, (1, 6, 5)).shape == (1, 1, 6, 5)
    assert seen_pixels(model, (1, 6, 5)).all()


# layer_table


def test_table_of_the_lessons_network():
    table = layer_table(get_model(), torch.rand(2, 1, 28, 28).to(next(get_model().parameters())))
    assert list(table) == ["layer", "output", "parameters", "multiplications"]
    assert [tuple(row[1:]) for row in table.itertuples(index=False)] == [row[:3] for row in by_hand]


def test_table_counts_the_multiplications_of_other_layers():
    model = nn.Sequential(
        nn.Conv2d(2, 4, (1, 3), groups=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 3, 5)
    )
    table = layer_table(model, torch.rand(3, 2, 8, 8))
    # a filter of the grouped convolution sees one channel
    assert table["multiplications"].tolist() == [4 * 1 * 3 * 8 * 6, 48 * 5]


def test_table_has_every_parameter_and_leaves_the_model_alone():
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(conv(1, 4), norm, nn.Dropout(), conv(4, 8), nn.PReLU()).train()
    before = norm.running_mean.clone()
    table = layer_table(model, torch.rand(2, 1, 8, 8))
    assert table["layer"].tolist() == ["Conv2d", "BatchNorm2d", "Conv2d", "PReLU"]
    assert table["parameters"].sum() == sum(p.numel() for p in model.parameters())
    assert model.training and torch.equal(norm.running_mean, before)
    assert not any(m._forward_hooks for m in model.modules())


def test_table_of_a_single_layer_and_of_a_branch():
    assert len(layer_table(nn.Conv2d(1, 1, 3), torch.rand(1, 1, 5, 5))) == 1
    branch = Residual(nn.Conv2d(1, 1, 3, padding=1))
    assert layer_table(branch, torch.rand(1, 1, 5, 5))["parameters"].tolist() == [10]


# top_patches


@pytest.mark.parametrize("i", range(4))
def test_top_patches_are_what_the_filters_saw(i, sample):
    model, xb = cnn(), sample["test"][0][:200, None].float() / 255
    field = receptive_field([(3, 2, 1)] * (i + 1))
    patches, answers = top_patches(model[: i + 1], field, xb, k=3)
    nf, r = model[i][0].out_channels, field.size
    assert patches.shape == (nf, 3, 1, r, r) and answers.shape == (nf, 3)
    with torch.no_grad():
        maps = model[: i + 1](xb)
    torch.testing.assert_close(answers, maps.amax((2, 3)).T.topk(3).values)
    if i == 0:  # zeros are what the first layer has beyond the image
        windows = patches.nan_to_num(0).flatten(0, 1)
        with torch.no_grad():
            got = F.conv2d(windows, model[0][0].weight, model[0][0].bias).relu().flatten(1)
        torch.testing.assert_close(got.unflatten(0, (nf, 3))[range(nf), :, range(nf)], answers)


def test_top_patches_beyond_the_image_are_nan():
    f = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.zeros_(f.weight)
    f.weight.data[0, 0, 1, 1] = 1
    xb = torch.zeros(2, 1, 4, 5)
    xb[0, 0, 0, 4] = 2  # in the upper right corner
    patches, answers = top_patches(f, receptive_field([(3, 1, 1)]), xb, k=1)
    want = [[math.nan] * 3, [0, 2, math.nan], [0, 0, math.nan]]
    np.testing.assert_array_equal(patches[0, 0, 0].numpy(), want)
    assert answers.tolist() == [[2]]


# shifts


def test_shift_moves_cuts_and_fills_with_black():
    x = torch.arange(1.0, 13).view(1, 1, 3, 4)
    assert shift_images(x, 1, 0)[0, 0].tolist() == [[0] * 4, [1, 2, 3, 4], [5, 6, 7, 8]]
    assert shift_images(x, -1, 0)[0, 0].tolist() == [[5, 6, 7, 8], [9, 10, 11, 12], [0] * 4]
    assert shift_images(x, 0, 1)[0, 0, 0].tolist() == [0, 1, 2, 3]
    assert shift_images(x, 0, -2)[0, 0, 0].tolist() == [3, 4, 0, 0]
    assert torch.equal(shift_images(x, 0, 0), x)


def test_shift_accuracy_has_rows_down_and_columns_right():
    "A model that is right only if the dot is in the middle of its 5x5 image, of dots elsewhere."

    class Middle(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 2, 2], 0.5 + 0 * x[:, 0, 2, 2]], 1)

    xb = torch.zeros(1, 1, 5, 5)
    xb[0, 0, 1, 4] = 1  # one down and two to the left, and it's in the middle
    accs = shift_accuracy(Middle(), xb, torch.tensor([0]), most=2)
    assert accs.nonzero().tolist() == [[3, 0]]


def test_show_shifts_writes_each_accuracy_where_it_belongs():
    accs = torch.linspace(0, 1, 9).view(3, 3)
    ax = show_shifts(accs, title="moved")
    texts = {t.get_position(): t.get_text() for t in ax.texts}
    assert texts[1, 0] == "12" and texts[0, 2] == "75" and len(texts) == 9
    assert [t.get_text() for t in ax.get_xticklabels()] == ["-1", "0", "1"]
    assert ax.get_title() == "moved"


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
    # the colours are those of the mistakes: the diagonal has none
    shown = ax.images[0].get_array()
    assert np.isnan(shown.filled(math.nan)).tolist() == np.eye(3, dtype=bool).tolist()
    assert ax.images[0].get_clim()[1] == pytest.approx(1.6 * 3)
    assert matrix[0, 0] == 5
    ax.figure.canvas.draw()
