"Our own convolution: PyTorch is the oracle, over shapes, types, threads and whole runs."

import copy
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from slowconv.convs import conv, get_model
from slowconv.fast import IMAGES, FastNet, channels_last
from slowconv.training import fit

root = Path(__file__).parents[1]
sides = st.integers(1, 9)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def flat(params):
    return torch.cat([channels_last(p).flatten() for p in params])


@st.composite
def networks(draw):
    "One to three layers and a batch that they can take, neither of them usual."
    layers, channels, size = [], draw(st.integers(1, 9)), [draw(sides), draw(sides)]
    shape = draw(st.sampled_from([0, 1, 3, IMAGES - 1, IMAGES, IMAGES + 5])), channels, *size
    for _ in range(draw(st.integers(1, 3))):
        pad = [draw(st.integers(0, 3)) for _ in size]
        ks = [draw(st.integers(1, min(5, n + 2 * p))) for n, p in zip(size, pad, strict=True)]
        stride = [draw(st.integers(1, 4)) for _ in size]
        nf = draw(st.integers(1, 11))
        layers.append(nn.Conv2d(channels, nf, ks, stride, pad))
        if draw(st.booleans()):
            layers.append(nn.ReLU())
        size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, pad, ks, stride, strict=True)]
        channels = nf
    return nn.Sequential(*layers), shape


@settings(max_examples=150, deadline=None)
@given(networks(), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_outputs_and_gradients_are_pytorch_s(case, seed, threads):
    model, shape = case
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    x = torch.randn(shape, requires_grad=True)
    net = FastNet(copy.deepcopy(model))
    y, expected = net(x), model(x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    # an output that is zero but for rounding may lie on either side of a ReLU
    if not len(x) or any(near_zero(model, x)):
        return
    gy = torch.randn_like(y)
    wanted = torch.autograd.grad(expected, [x, *model.parameters()], gy)
    gx, gw = torch.autograd.grad(y, [x, net.weights], gy)
    for got, want in ((gx, wanted[0]), (gw, flat(wanted[1:]))):
        scale = want.abs().max().clamp(min=1)
        torch.testing.assert_close(got / scale, want / scale, rtol=0, atol=1e-5)


def near_zero(model, x):
    for m in model:
        if isinstance(m, nn.ReLU):
            yield bool((x.abs() < 1e-5).any())
        x = m(x)


def test_gradcheck():
    torch.manual_seed(0)
    layers = (
        conv(2, 5, 3),
        conv(5, 4, 1, stride=1),
        nn.Conv2d(4, 3, (3, 1), (1, 3), (2, 0)),
        nn.Flatten(),
    )
    net = FastNet(nn.Sequential(*layers).double())
    x = torch.randn(3, 2, 7, 6, dtype=torch.float64, requires_grad=True)

    def outputs(x, weights):
        return torch.func.functional_call(net, {"weights": weights}, (x,))

    assert torch.autograd.gradcheck(outputs, (x, net.weights))


def test_inputs_of_any_layout():
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 4), conv(4, 5))
    net = FastNet(copy.deepcopy(model))
    x = torch.randn(5, 3, 12, 10)
    for way in (x.mT, x[:, :, ::2], x[::2], x.flip(3), x.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(net(way), model(way), rtol=1e-5, atol=1e-5)
    y = net(x)
    (one,) = torch.autograd.grad(y.sum(), net.weights, retain_graph=True)  # an expanded gradient
    (two,) = torch.autograd.grad(y, net.weights, torch.ones_like(y))
    assert torch.equal(one, two)


def test_threads_make_no_difference():
    torch.manual_seed(0)
    net, x = FastNet(get_model().cpu()), torch.rand(5 * IMAGES + 3, 1, 28, 28)
    grads = []
    for n in (1, 2, 4):
        torch.set_num_threads(n)
        (grad,) = torch.autograd.grad(net(x).logsumexp(1).sum(), net.weights)
        grads.append(grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_pytorch_keeps_its_threads():
    code = """
import torch
from slowconv import get_model
from slowconv.fast import FastNet
torch.set_num_threads(1)  # fewer than Numba starts
FastNet(get_model().cpu())(torch.rand(100, 1, 28, 28)).sum().backward()
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_from_several_python_threads_at_once():
    torch.manual_seed(0)
    net, x = FastNet(get_model().cpu()), torch.rand(3 * IMAGES, 1, 28, 28)

    def grad(_):
        return torch.autograd.grad(net(x).logsumexp(1).sum(), net.weights)[0]

    want = grad(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(got, want) for got in pool.map(grad, range(40)))


def test_several_forwards_before_a_backward_and_a_head_that_is_pytorch_s():
    torch.manual_seed(0)
    model = nn.Sequential(get_model().cpu(), nn.Linear(10, 3))
    net, a, b = FastNet(copy.deepcopy(model)), torch.rand(3, 1, 28, 28), torch.rand(40, 1, 28, 28)
    losses = [(net(a).sum() + 2 * net(b).sum()), (model(a).sum() + 2 * model(b).sum())]
    for loss in losses:
        loss.backward()
    got, want = (flat(p.grad for p in m.parameters()) for m in (net, model))
    torch.testing.assert_close(got / want.abs().max(), want / want.abs().max(), rtol=0, atol=1e-5)


def test_what_is_no_number_is_seen():
    net, x = FastNet(get_model().cpu()), torch.rand(IMAGES, 1, 28, 28)
    x[3, 0, 20, 20] = torch.nan
    bad = net(x).isnan().any(1)
    assert bad[3] and bad.sum() == 1


def test_weights_go_in_and_come_back():
    torch.manual_seed(0)
    model = get_model().cpu()
    before = copy.deepcopy(model.state_dict())
    net = FastNet(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(net.weights, flat(model.parameters()))
    opt = optim.Adam(net.parameters())
    net(torch.rand(4, 1, 28, 28)).sum().backward()
    opt.step()
    assert torch.equal(net.weights, flat(model.parameters()))
    assert all(not torch.equal(v, before[k]) for k, v in model.state_dict().items() if "bias" in k)
    model.load_state_dict(before)
    assert torch.equal(net.weights, flat(before.values()))
    other = get_model().cpu()
    FastNet(other).load_state_dict(net.state_dict())
    assert torch.equal(flat(other.parameters()), net.weights)
    assert torch.equal(copy.deepcopy(net).weights, net.weights)


@pytest.mark.parametrize(
    "make",
    [lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3), lambda p: optim.AdamW(p)],
)
def test_fit_gives_pytorch_s_losses_step_by_step(make):
    torch.manual_seed(0)
    x, y = torch.rand(600, 1, 28, 28, dtype=torch.float64), torch.randint(10, (600,))
    batches = list(zip(x.split(70), y.split(70), strict=True))
    model = get_model().cpu().double()
    losses = []
    for net in (copy.deepcopy(model), FastNet(model)):
        seen = []

        def loss_func(pred, yb, seen=seen):
            seen.append(F.cross_entropy(pred, yb))
            return seen[-1]

        fit(2, net, loss_func, make(net.parameters()), batches, batches[:3])
        losses.append(torch.stack(seen).detach())
    assert len(losses[0]) == 2 * (len(batches) + 3)
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
    assert losses[0][-1] < losses[0][0]


def digits(n):
    torch.manual_seed(0)
    return torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (n,))


@pytest.mark.parametrize("n, bs", [(200, 70), (100, 1), (40, 256)])
def test_an_epoch_in_one_call_has_pytorch_s_losses_step_by_step(n, bs):
    images, labels = digits(n)
    model, momentum = get_model().cpu().double(), 0.9
    net = FastNet(copy.deepcopy(model))
    opt, losses, found = optim.SGD(model.parameters(), lr=0.1, momentum=momentum), [], []
    for epoch in range(2):
        lrs = torch.rand(-(-n // bs)).tolist()
        torch.manual_seed(epoch)
        for lr, idx in zip(lrs, torch.randperm(n).split(bs), strict=True):
            opt.param_groups[0]["lr"] = lr
            losses.append(F.cross_entropy(model(images[idx].double() / 255), labels[idx]))
            opt.zero_grad()
            losses[-1].backward()
            opt.step()
        torch.manual_seed(epoch)
        found += net.train_epoch(images, labels, lrs, momentum, bs)
    torch.testing.assert_close(torch.stack(found), torch.stack(losses), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(net.weights, flat(model.parameters()), rtol=1e-8, atol=1e-9)


def test_threads_make_no_difference_to_an_epoch():
    images, labels = digits(500)
    start, weights = get_model().cpu(), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        torch.manual_seed(1)
        net = FastNet(copy.deepcopy(start))
        net.train_epoch(images, labels, 0.1, 0.9, bs=100)
        weights.append(net.weights)
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "change, part",
    [
        ({"images": torch.rand(20, 1, 28, 28)}, "float32"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, "19 labels"),
        ({"labels": torch.full((20,), 10)}, "labels (10, 10)"),
        ({"labels": torch.full((20,), -1)}, "labels (-1, -1)"),
        ({"images": torch.zeros(20, 1, 99, 28, dtype=torch.uint8)}, "maps of [4, 1]"),
        ({"bs": 0}, "bs=0"),
        ({"lr": [0.1, 0.1]}, "2 learning rates"),
    ],
)
def test_an_epoch_that_cannot_be(change, part):
    images, labels = digits(20)
    net = FastNet(get_model().cpu())
    before = net.weights.clone()
    with pytest.raises(ValueError) as e:
        net.train_epoch(**{"images": images, "labels": labels, "lr": 0.1} | change)
    assert part in str(e.value)
    assert torch.equal(net.weights, before)


def test_it_is_not_converted_without_its_model():
    net = FastNet(get_model().cpu())
    for change in (net.double, lambda: net.to("meta")):
        with pytest.raises(TypeError, match="make a new FastNet"):
            change()
    assert net.float().cpu() is net


def test_evaluating_keeps_no_graph():
    net = FastNet(get_model().cpu())
    with torch.no_grad():
        assert not net(torch.rand(2, 1, 28, 28)).requires_grad


@pytest.mark.parametrize(
    "model, part",
    [
        (nn.Sequential(conv(1, 2), nn.MaxPool2d(2), conv(2, 2)), "MaxPool2d"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "Flatten"),
        (nn.Sequential(nn.ReLU(), conv(1, 2)), "ReLU"),
        (nn.Conv2d(4, 4, 3, groups=2), "groups=2"),
        (nn.Conv2d(4, 4, 3, dilation=2), "dilation=(2, 2)"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode=reflect"),
        (nn.Conv2d(4, 4, 3, padding="same"), "padding=same"),
        (nn.Conv2d(4, 4, 3, bias=False), "bias=False"),
        (nn.Sequential(*[nn.Conv2d(4, 4, 3)] * 2), "Conv2d"),
        (nn.Sequential(), "Sequential()"),
        (nn.Conv2d(1, 1, 1).half(), "float16"),
        (nn.Conv2d(1, 1, 1).requires_grad_(False), "False"),
    ],
)
def test_what_it_cannot_do_it_says(model, part):
    with pytest.raises(ValueError) as e:
        FastNet(model)
    assert part in str(e.value)


@pytest.mark.parametrize(
    "x, part",
    [
        (torch.rand(2, 3, 28, 28), "[3, 28, 28]"),
        (torch.rand(2, 784), "[2, 784]"),
        (torch.rand(2, 1, 28, 28).double(), "float64"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "uint8"),
    ],
)
def test_images_that_do_not_fit(x, part):
    with pytest.raises(ValueError) as e:
        FastNet(get_model().cpu())(x)
    assert part in str(e.value)


def test_images_that_are_too_small():
    with pytest.raises(ValueError, match="before layer 2"):
        FastNet(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)))(torch.rand(1, 1, 4, 4))


def test_a_second_backward_is_refused_as_by_pytorch():
    y = FastNet(get_model().cpu())(torch.rand(2, 1, 28, 28)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_the_lines_of_speedrun_are_of_its_networks(monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    from speedrun import chain, network

    lines = map(json.loads, (root / "benchmarks" / "speedrun.jsonl").read_text().splitlines())
    runs = [r for r in lines if r["step"] == "choose"]
    for name, config in chain.items():
        net = FastNet(network(config))
        assert net.plan((1, 28, 28))[1] == (10, 1, 1)
        mine = [r for r in runs if r["change"] == name]
        assert [r["seed"] for r in mine] == [0, 1, 2, 3, 4]
        assert all((config | {"parameters": len(net.weights)}).items() <= r.items() for r in mine)


def test_without_numba_it_says_what_to_install():
    code = """
import sys
sys.modules["numba"] = None  # as if it were not installed
try:
    import slowconv.fast
except ImportError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'slowconv[fast]'" in done.stdout


def test_nothing_else_loads_numba():
    code = "from slowconv import fit, fashion_mnist, get_model; import sys; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_registers_of_another_length():
    code = """
import copy, torch
from llvmlite import binding
real = binding.get_host_cpu_features()

class Features(dict):  # Numba still sees the real ones
    flatten = real.flatten

binding.get_host_cpu_features = lambda: Features(avx512f=not real.get("avx512f"))
from slowconv.convs import get_model
from slowconv.fast import FastNet, channels_last
model, x = get_model().cpu(), torch.rand(50, 1, 28, 28)
net = FastNet(copy.deepcopy(model))
for m in (net, model):
    m(x).logsumexp(1).sum().backward()
want = torch.cat([channels_last(p.grad).flatten() for p in model.parameters()])
torch.testing.assert_close(net.weights.grad / want.abs().max(), want / want.abs().max(), rtol=0, atol=1e-5)
"""
    with tempfile.TemporaryDirectory() as cache:  # what's compiled here is for no other process
        env = os.environ | {"NUMBA_CACHE_DIR": cache}
        subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=env)
