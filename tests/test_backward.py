"Our own backward pass: PyTorch's autograd is the oracle, over shapes, faults and a run."

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from slowconv.backward import (
    backward_pass,
    conv_backward,
    cross_entropy_backward,
    forward_pass,
    max_pool_backward,
    numeric_gradient,
)
from slowconv.convs import conv, get_model
from slowconv.kernels import out_size

small = st.integers(1, 3)


def pairs(numbers):
    return st.tuples(numbers, numbers)


def autograd(f, *tensors):
    "The gradients of (f(*tensors) * gy).sum(), and a gy of whole numbers."
    tensors = [t.clone().requires_grad_() for t in tensors]
    y = f(*tensors)
    gy = torch.randint(-9, 10, y.shape).to(y)
    return torch.autograd.grad(y, tensors, gy), gy


@st.composite
def convolutions(draw):
    "Shapes of x and weight, and how: all of it for rows and columns apart, groups and leftovers included."
    how = {name: draw(pairs(small)) for name in ("stride", "dilation")}
    how |= {"padding": draw(pairs(st.integers(0, 3))), "groups": draw(small)}
    ks, size = draw(pairs(st.integers(1, 4))), []
    for k, p, d in zip(ks, how["padding"], how["dilation"], strict=True):
        least = max(d * (k - 1) + 1 - 2 * p, 1)
        size.append(draw(st.integers(least, least + 6)))
    ni, nf = (how["groups"] * draw(small) for _ in range(2))
    return (draw(small), ni, *size), (nf, ni // how["groups"], *ks), how


@settings(max_examples=300)
@given(convolutions(), st.integers(0, 2**32 - 1))
def test_conv_backward_is_autograd(case, seed):
    x, weight, how = case
    torch.manual_seed(seed)  # whole numbers, so that there's no rounding, and equal means equal
    x, weight = (torch.randint(-9, 10, shape).double() for shape in (x, weight))
    bias = torch.zeros(len(weight)).double()
    true, gy = autograd(lambda *a: F.conv2d(*a, **how), x, weight, bias)
    ours = conv_backward(gy, x, weight, **how)
    assert all(map(torch.equal, ours, true))


@given(st.integers(1, 4), small, pairs(st.integers(4, 9)), st.integers(0, 2**32 - 1))
def test_max_pool_backward_is_autograd_with_ties_and_overlaps(ks, stride, size, seed):
    torch.manual_seed(seed)
    x = torch.randint(-2, 2, (2, 3, *size)).double()
    (true,), gy = autograd(lambda x: F.max_pool2d(x, ks, stride), x)
    assert torch.equal(max_pool_backward(gy, x, ks, stride), true)


@pytest.mark.parametrize("groups, stride", [(1, 1), (2, 2)])
def test_numeric_gradient_finds_it_and_puts_back_what_it_nudges(groups, stride):
    x, weight = torch.randn(1, 4, 5, 6).double(), torch.randn(2, 4 // groups, 3, 3).double()
    before = weight.clone()
    gy = torch.randn_like(F.conv2d(x, weight, stride=stride, groups=groups))
    true = conv_backward(gy, x, weight, stride, groups=groups)[1]

    def f(w):
        return (F.conv2d(x, w, stride=stride, groups=groups) * gy).sum()

    assert torch.allclose(numeric_gradient(f, weight), true, atol=1e-8)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype, most", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_run_has_the_losses_of_autograd(sample, dtype, most):
    images, labels = sample["train"]
    torch.manual_seed(3)
    nets = [get_model().cpu().to(dtype)]
    nets.append(copy.deepcopy(nets[0]))
    opts = [optim.SGD(net.parameters(), lr=0.1) for net in nets]
    for i in range(0, 5000 if dtype == torch.float64 else 2000, 200):
        xb, yb = images[i : i + 200, None].to(dtype) / 255, labels[i : i + 200]
        opts[0].zero_grad()
        logits, kept = forward_pass(nets[0], xb)
        backward_pass(kept, cross_entropy_backward(logits, yb))
        opts[1].zero_grad()
        loss = F.cross_entropy(nets[1](xb), yb)
        loss.backward()
        assert abs(F.cross_entropy(logits, yb) - loss) < most
        for opt in opts:
            opt.step()


def test_layers_that_are_used_twice_get_both_gradients():
    twice, relu = nn.Conv2d(2, 2, 3, padding=1).double(), nn.ReLU()
    block = nn.Sequential(twice, relu)
    model, x = nn.Sequential(block, twice, relu, block, nn.ReLU()), torch.randn(2, 2, 5, 4).double()
    y, kept = forward_pass(model, x)
    assert len(kept) == 7 and torch.equal(y, model(x))
    true = torch.autograd.grad((model(x) ** 2).sum(), twice.parameters())
    backward_pass(kept, 2 * y)
    for p, t in zip(twice.parameters(), true, strict=True):
        assert torch.allclose(p.grad, t, atol=1e-10)


def test_backward_pass_goes_through_any_conv_and_says_what_it_cannot():
    odd = nn.Conv2d(4, 6, (3, 2), (1, 3), (0, 1), (2, 1), groups=2, bias=False)
    model = nn.Sequential(
        conv(3, 4, ks=5), nn.Sequential(odd, nn.ReLU()), nn.MaxPool2d(2, 1), nn.Flatten()
    )
    model, x = model.double(), torch.randn(2, 3, 12, 11).double().requires_grad_()
    y, kept = forward_pass(model, x)
    assert y.shape[1] == 6 * (out_size(6, 5) - 1) * (out_size(6, 2, 3, 1) - 1)
    gy = torch.randn_like(y)
    gx = backward_pass(kept, gy)
    true = torch.autograd.grad(model(x), [x, *model.parameters()], gy)
    for ours, a in zip([gx, *(p.grad for p in model.parameters())], true, strict=True):
        assert torch.allclose(ours, a, atol=1e-10)
    other = [nn.GELU(), nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")]
    other += [
        nn.MaxPool2d(2, **how) for how in ({"padding": 1}, {"dilation": 2}, {"ceil_mode": True})
    ]
    for layer in other:
        with pytest.raises(TypeError, match="no way back through"):
            backward_pass(forward_pass(nn.Sequential(layer), x.float())[1], x.float())
