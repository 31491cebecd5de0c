"Lesson 12's network, and the weights that come with it."

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import slowconv
from slowconv.best import get_best_model, residual_net, separable
from slowconv.convs import conv, get_model
from slowconv.data import find_source, load_images

root = Path(__file__).parents[1]


@given(
    ni=st.integers(1, 5),
    nf=st.integers(1, 5),
    ks=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    act=st.booleans(),
    size=st.integers(3, 9),
)
def test_separable_stands_where_a_conv_stands(ni, nf, ks, stride, act, size):
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


def test_batchnorm_also_within_residual_blocks():
    layers = [type(m) for m in residual_net(4, (6, 2)).modules()]
    assert (layers.count(nn.Conv2d), layers.count(nn.BatchNorm2d)) == (1 + 2 * 3, 1 + 3)


def stated():
    path = Path(slowconv.__file__).with_name("best.safetensors")
    assert path.stat().st_size < 100_000
    with safe_open(path, "pt") as file:
        return float(file.metadata()["test accuracy"])


@pytest.mark.parametrize("source, tolerance", [(None, 2e-4), ("sample", 0.03)])
def test_the_weights_that_come_along_give_the_stated_accuracy(source, tolerance):
    if source is None and find_source("fashion_mnist") == "sample":
        pytest.skip("needs the whole test set")
    images, labels = load_images("fashion_mnist", "test", source)
    model = get_best_model().cpu().eval()
    with torch.no_grad():
        preds = [model(x[:, None] / 255).argmax(1) for x in images.split(1000)]
    assert (torch.cat(preds) == labels).float().mean() == pytest.approx(stated(), abs=tolerance)


def test_the_best_network_is_small_and_new_ones_are_new():
    new = [get_best_model(trained=False) for _ in range(2)]
    sizes = {sum(p.numel() for p in m.parameters()) for m in (*new, get_best_model())}
    assert len(sizes) == 1 and sizes.pop() <= sum(p.numel() for p in get_model().parameters())
    assert not torch.equal(next(new[0].parameters()), next(new[1].parameters()))


def test_what_is_stated_is_what_was_measured():
    rows = [json.loads(r) for r in (root / "benchmarks" / "best.jsonl").read_text().splitlines()]
    tested = {r["seed"]: r["accuracy"] for r in rows if r.get("limit") == 5274}
    assert tested[0] == pytest.approx(stated(), abs=1e-4)
