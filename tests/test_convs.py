"Kernels, conv, to_device and the lesson's CNN."

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Mapping
from importlib.resources import files
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slowconv.convs import conv, def_device, get_model, init_weights, to_device
from slowconv.kernels import apply_kernel, conv_slow, im2col, out_size, top_edge


def test_the_lesson_s_digit_is_784_bytes():
    pixels = files("slowconv").joinpath("sample/mnist_7.bytes").read_bytes()
    assert len(pixels) == 28 * 28 and min(pixels) == 0 and max(pixels) == 255
    assert "mnist_7.bytes" in files("slowconv").joinpath("sample/LICENSE").read_text()


@given(
    h=st.integers(1, 12),
    w=st.integers(1, 12),
    kh=st.sampled_from([1, 3, 5]),
    kw=st.sampled_from([1, 3, 5]),
)
def test_the_slow_way_is_conv2d(h, w, kh, kw):
    img, kernel = torch.randn(h, w), torch.randn(kh, kw)
    if kh > h or kw > w:
        with pytest.raises(ValueError, match=f"no {kh}x{kw} window"):
            apply_kernel(h // 2, w // 2, img, kernel)
        return
    expected = F.conv2d(img[None, None], kernel[None, None])[0, 0]
    torch.testing.assert_close(conv_slow(img, kernel), expected)
    if kh == kw:
        torch.testing.assert_close(im2col(img, kh) @ kernel.flatten(), expected.flatten())
        assert torch.equal(im2col(img, kh), F.unfold(img[None, None], kh)[0].T)


@pytest.mark.parametrize("row, col", [(0, 5), (5, 0), (27, 5), (5, 27), (-1, 5), (-5, 5), (30, 5)])
def test_a_window_beyond_the_image_is_refused(row, col):
    for img in (torch.zeros(28, 28), torch.zeros(6, 28)):
        with pytest.raises(
            ValueError, match=rf"no 3x3 window around \({row}, {col}\) in an image of"
        ):
            apply_kernel(row, col, img, top_edge)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (4, 4)])
def test_an_even_kernel_is_refused(shape):
    with pytest.raises(ValueError, match="its sides must be odd"):
        apply_kernel(5, 5, torch.zeros(28, 28), torch.ones(shape))


def test_out_size_is_that_of_conv2d():
    checked = 0
    for n, ks, *settings in product(range(1, 13), (1, 2, 3, 5), (1, 2, 3), range(3), (1, 2)):
        size = out_size(n, ks, *settings)
        x, w = torch.zeros(1, 1, n, n), torch.zeros(1, 1, ks, ks)
        if size > 0:
            checked += 1
            assert F.conv2d(x, w, None, *settings).shape[-2:] == (size, size)
        else:
            with pytest.raises(RuntimeError):
                F.conv2d(x, w, None, *settings)
    assert checked == 759


@given(
    n=st.integers(1, 3),
    ni=st.integers(1, 3),
    nf=st.integers(1, 4),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    ks=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 4),
    act=st.booleans(),
)
def test_conv_gives_ceil_of_size_over_stride(n, ni, nf, h, w, ks, stride, act):
    y = conv(ni, nf, ks, stride, act)(torch.randn(n, ni, h, w))
    assert y.shape == (n, nf, -(-h // stride), -(-w // stride))
    assert not act or (y >= 0).all()


def test_conv_is_the_layer_it_says():
    layer = conv(2, 5, ks=5, stride=3, act=False)
    assert type(layer) is nn.Conv2d
    assert (layer.in_channels, layer.out_channels) == (2, 5)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((5, 5), (3, 3), (2, 2))
    block = conv(2, 5)
    assert [type(m) for m in block] == [nn.Conv2d, nn.ReLU]
    assert (block[0].kernel_size, block[0].stride, block[0].padding) == ((3, 3), (2, 2), (1, 1))


@pytest.mark.parametrize("ks", [4, 2, 0, -1])
def test_conv_takes_no_kernel_without_a_middle(ks):
    with pytest.raises(ValueError, match=f"^conv: ks={ks}; expected an odd size"):
        conv(1, 4, ks)


def test_def_device_is_mps_else_cuda_else_cpu():
    best = "cuda" if torch.cuda.is_available() else "cpu"
    best = "mps" if torch.backends.mps.is_available() else best
    assert def_device == best and isinstance(def_device, str)


class Here(torch.Tensor):
    "A tensor that tells whether it was asked to move."

    moved_to = None

    def to(self, device, *args, **kwargs):
        new = self.clone().as_subclass(Here)
        new.moved_to = torch.device(device)
        return new


def here(*values):
    return torch.tensor(values).as_subclass(Here)


Pair = namedtuple("Pair", "left right")


leaves = st.one_of(
    st.builds(here, st.integers(0, 9)),
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=5),
    st.builds(object),
    st.binary(max_size=3),
)


def containers(inner):
    dicts = st.dictionaries(st.text(max_size=3), inner, max_size=3)
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.builds(Pair, inner, inner),
        dicts,
        dicts.map(OrderedDict),
        dicts.map(UserDict),
    )


def check_moved(old, new):
    "`new` is the like of `old`, with its tensors moved, and `old` is as it was."
    if isinstance(old, torch.Tensor):
        assert new.moved_to == torch.device("cpu") and old.moved_to is None
        assert torch.equal(old.as_subclass(torch.Tensor), new.as_subclass(torch.Tensor))
        return
    if isinstance(old, (list, tuple)):
        assert type(new) is type(old) and len(new) == len(old)
        pairs = zip(old, new, strict=True)
    elif isinstance(old, Mapping):
        assert type(new) is dict and list(new) == list(old)
        pairs = ((old[k], new[k]) for k in old)
    else:
        assert new is old
        return
    for a, b in pairs:
        check_moved(a, b)


@given(st.recursive(leaves, containers, max_leaves=12))
def test_to_device_moves_tensors_at_any_depth_and_keeps_all_else(x):
    check_moved(x, to_device(x, "cpu"))


def test_to_device_without_a_device_takes_def_device():
    moved = to_device([torch.ones(2)])[0].device
    assert moved.type == torch.device(def_device).type


def test_what_is_there_already_costs_nothing():
    x = {"xb": torch.ones(2), "more": [torch.ones(1)]}
    got = to_device(x, "cpu")
    assert got["xb"] is x["xb"] and got["more"][0] is x["more"][0]


@pytest.mark.parametrize("device", ["gpu9", "cpu0"])
def test_unknown_device(device):
    with pytest.raises(RuntimeError, match=device):
        to_device(torch.ones(1), device)


def test_get_model_starts_from_kaiming_weights_and_zero_biases():
    weights = [[] for _ in range(5)]
    for _ in range(40):
        convs = [m for m in get_model().modules() if isinstance(m, nn.Conv2d)]
        assert all((m.bias == 0).all() for m in convs)
        for w, m in zip(weights, convs, strict=True):
            w.append(m.weight.detach().flatten())
    for w, fan_in in zip(weights, [9, 36, 72, 144, 144], strict=True):
        w = torch.cat(w)
        assert w.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
        assert w.mean().item() == pytest.approx(0, abs=0.1 * (2 / fan_in) ** 0.5)
        assert (w.abs() > 2 * w.std()).any()  # normal, not uniform: that ends at 1.73 deviations


def test_get_model_follows_the_seed():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([p.flatten() for p in get_model().parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_init_weights_takes_layers_without_a_bias_and_leaves_others():
    norm = nn.BatchNorm2d(3)
    before = [p.clone() for p in norm.parameters()]
    nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), norm, nn.Linear(2, 2)).apply(init_weights)
    assert all(torch.equal(a, b) for a, b in zip(before, norm.parameters(), strict=True))
