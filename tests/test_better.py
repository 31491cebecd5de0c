"What lesson 06 adds to a model: BatchNorm, flips and shifts, and the runs behind its table."

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slowconv.better import FlipShift, changes, with_batchnorm
from slowconv.convs import get_model

root = Path(__file__).parents[1]


def test_batchnorm_stands_between_convolution_and_relu():
    model = get_model().cpu()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    normed = with_batchnorm(model)
    for layer in normed[:4]:
        conv, bn, act = layer
        assert (type(conv), type(bn), type(act)) == (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)
        assert conv.bias is None and bn.num_features == conv.out_channels
    assert isinstance(normed[4], nn.Conv2d) and normed[4].bias is not None
    assert before.keys() == model.state_dict().keys(), "the model itself stays as it is"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    x = torch.randn(64, 1, 28, 28)
    out = normed[0][1](normed[0][0](x))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    elsewhere = with_batchnorm(model.to("meta"))
    assert {p.device.type for p in elsewhere.parameters()} == {"meta"}


def windows(im, shift):
    "All that may become of an image: [2*(2*shift+1)**2,C,H,W]."
    h, w = im.shape[-2:]
    out = []
    for a in (im, im.flip(-1)):
        wide = F.pad(a, (shift, shift, shift, shift))
        places = range(2 * shift + 1)
        out += [wide[:, r : r + h, c : c + w] for r in places for c in places]
    return torch.stack(out)


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("shape", [(40, 1, 6, 5), (40, 3, 4, 4)])
def test_each_image_is_mirrored_and_moved_by_its_own_choice(shift, shape):
    x = torch.rand(shape)
    y = FlipShift(shift)(x)
    assert y.shape == x.shape
    choices = []
    for a, b in zip(x, y, strict=True):
        same = (windows(a, shift) == b).flatten(1).all(1)
        assert same.any(), "none of the windows"
        choices.append(same.nonzero()[0].item())
    assert len(set(choices)) >= min(2 * (2 * shift + 1) ** 2, 12) - 2, "the same choice for many"


@pytest.mark.parametrize("flip, shift, most", [(True, 0, 2), (False, 1, 9), (False, 0, 1)])
def test_flips_and_shifts_can_be_had_alone(flip, shift, most):
    x = torch.rand(1, 1, 4, 4).expand(300, 1, 4, 4)
    seen = FlipShift(shift, flip=flip)(x).unique(dim=0)
    same = windows(x[0], shift) if flip else windows(x[0], shift)[:most]
    assert len(seen) == most and all((same == a).flatten(1).all(1).any() for a in seen)


def test_it_is_seeded_and_rests_in_evaluation():
    x, layer = torch.rand(20, 1, 8, 8), FlipShift(2)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(layer(x))
    assert torch.equal(*draws) and not torch.equal(layer(x), draws[0])
    assert layer.eval()(x) is x


def test_the_lines_of_better_are_of_the_changes_that_the_lesson_shows():
    lines = [json.loads(r) for r in (root / "benchmarks" / "better.jsonl").read_text().splitlines()]
    lines = [r for r in lines if r["table"] == "changes"]
    for name, row in changes.items():
        runs = [r for r in lines if r["name"] == name and not r["seeking"]]
        rates = {r["lr"] for r in runs}
        for lr in rates:  # where a run died, all were run again at the next lower rate
            five = [r for r in runs if r["lr"] == lr]
            assert sorted(r["seed"] for r in five) == list(range(5)), name
            assert (min(r["accuracy"][-1] for r in five) < 0.11) == (lr > min(rates)), name
        found = {}
        for r in lines:
            if r["name"] == name and r["seeking"]:
                found.setdefault(r["lr"], []).append(r["accuracy"][-1])
        scores = {k: sum(v) for k, v in found.items()}
        assert min(found) < max(scores, key=scores.get) == max(rates) < max(found), name
        model = row.get("make", get_model)()
        augment = row["augment"]() if "augment" in row else None
        opt = row.get("opt", torch.optim.SGD)(model.parameters(), 0.1)
        for r in runs:
            assert r["parameters"] == sum(p.numel() for p in model.parameters())
            assert r["batch"] == row.get("bs", 256) and len(r["accuracy"]) == r["epochs"] == 6
            assert r["optimizer"].split()[0] == type(opt).__name__
            assert ("momentum" in r["optimizer"]) == bool(opt.defaults.get("momentum"))
            assert r["one cycle"] == ({"momentum": False} if "sched" in row else None)
            want = augment and {"flips": augment.flip, "shifts": augment.shift}
            assert r["augmentation"] == want
