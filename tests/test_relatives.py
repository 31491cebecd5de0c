"The relatives of a convolution that other lessons import."

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slowconv.convs import conv
from slowconv.relatives import separable


@given(
    ni=st.integers(1, 5),
    nf=st.integers(1, 5),
    ks=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    act=st.booleans(),
    size=st.integers(3, 9),
)
def test_it_stands_where_a_conv_stands(ni, nf, ks, stride, act, size):
    "The same shapes, and the function of the full kernel that is made of its two layers."
    x = torch.randn(2, ni, size, size + 1)
    model = separable(ni, nf, ks, stride, act)
    around, across = model[0], model[1]
    weight = across.weight * around.weight.permute(1, 0, 2, 3)
    want = F.conv2d(x, weight, across.bias, stride, ks // 2)
    torch.testing.assert_close(model(x), want.relu() if act else want, atol=1e-5, rtol=1e-4)
    assert model(x).shape == conv(ni, nf, ks, stride, act)(x).shape
    assert isinstance(model[-1], nn.ReLU) == act
    assert sum(p.numel() for p in model.parameters()) == ni * ks**2 + ni * nf + nf


@pytest.mark.parametrize("ks", [2, 4])
def test_an_even_kernel(ks):
    with pytest.raises(ValueError, match=f"ks={ks} is even"):
        separable(1, 1, ks)
