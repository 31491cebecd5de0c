"Kernels, conv, to_device and the lesson's CNN."

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Mapping
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slowconv.convs import conv, def_device, get_model, init_weights, to_device
from slowconv.kernels import apply_kernel, conv_slow, im2col, out_size


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


@pytest.mark.parametrize(
    "row, col, shape, message",
    [(at, 5, (3, 3), rf"no 3x3 window around \({at}, 5\) in an image of") for at in (0, 27, -1)]
    + [(5, 27, (3, 3), r"no 3x3 window around \(5, 27\)"), (5, 5, (2, 3), "sides must be odd")],
)
def test_no_window_is_an_error(row, col, shape, message):
    with pytest.raises(ValueError, match=message):
        apply_kernel(row, col, torch.zeros(28, 28), torch.ones(shape))


def test_out_size_is_that_of_conv2d():
    checked = 0
    for n, ks, *settings in product(range(1, 13), (1, 2, 3, 5), (1, 2, 3), range(3), (1, 2)):
        stride, padding, dilation = settings
        size = out_size(n, dilation * (ks - 1) + 1, stride, padding)  # how far the kernel reaches
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
    with pytest.raises(ValueError, match=f"^conv: ks={ks + 1}; expected an odd size"):
        conv(ni, nf, ks + 1)


def test_def_device_is_mps_else_cuda_else_cpu():
    best = "cuda" if torch.cuda.is_available() else "cpu"
    best = "mps" if torch.backends.mps.is_available() else best
    assert def_device == best and isinstance(def_device, str)
    assert to_device([torch.ones(2)])[0].device.type == torch.device(def_device).type


Pair = namedtuple("Pair", "left right")


def described(x, device=None):
    "Containers with their types, and devices in the place of tensors."
    if isinstance(x, torch.Tensor):
        return device or x.device.type
    if isinstance(x, Mapping):
        return {k: described(v, device) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [type(x), *(described(v, device) for v in x)]
    return x


def test_to_device_moves_tensors_at_any_depth_and_keeps_all_else():
    t, deep = torch.ones(2), [{"a": [Pair(torch.ones(1), ())]}]
    x = [t, (t, None), Pair(t, "a"), {"a": deep, 1: (deep, b"c", object())}, [], True, 2.5]
    x += [OrderedDict(b=t, a=deep), UserDict(a=t, b=3)]
    moved = to_device(x, "meta")
    assert described(moved) == described(x, "meta") and described(x) == described(x, "cpu")
    assert [type(m) for m in moved[-2:]] == [dict, dict] and list(moved[-2]) == ["b", "a"]


def test_what_is_there_already_costs_nothing():
    x = {"xb": torch.ones(2), "more": [torch.ones(1)]}
    got = to_device(x, "cpu")
    assert got["xb"] is x["xb"] and got["more"][0] is x["more"][0]


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
    norm = nn.BatchNorm2d(3)
    nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), norm).apply(init_weights)
    assert (norm.weight == 1).all()  # what is no convolution stays
