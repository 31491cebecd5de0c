"""One training step of the lesson's CNN, and an epoch: PyTorch in three ways and ours in two, side by side.

    python benchmarks/step.py             # 20 rounds: some five minutes on two cores
    python benchmarks/step.py --rounds 1  # a quick look: two minutes, most of it compiling
    python benchmarks/step.py --save      # and its tables go into benchmarks/README.md

Only the ratios carry over to another machine. On a machine with a CUDA device, PyTorch's ways run there
too, with cuDNN, and one more: a step that is recorded once, as a CUDA graph, and then replayed. Ours runs on
the CPU. Exits with an error if the ways come to unlike losses.
"""

import copy
import os
import sys
import tempfile
import time
from functools import partial
from statistics import median
from unittest.mock import patch

import common
import torch
import torch.nn.functional as F
from common import bs, lr
from fastcore.script import call_parse
from torch import optim
from tqdm import tqdm

from slowconv.convs import get_model
from slowconv.data import fashion_mnist, load_images
from slowconv.fast import FastNet, peak, products
from slowconv.training import fit, run_epoch

repeats = 50  # steps in a row
eager, graph = "PyTorch eager", "CUDA graph"
ours, one_call = "`FastNet`", "`FastNet.train_epoch`"


def take_steps(net, opt, xb, yb, n=repeats):  # loss of the last
    for _ in range(n):
        loss = F.cross_entropy(net(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
    return loss.item()


class Graph:
    "A step of SGD on a CUDA device, recorded once; each batch is copied to where the record reads it."

    def __init__(self, net):
        self.net, start = net, copy.deepcopy(net.state_dict())
        self.xb = torch.zeros(bs, 1, 28, 28, device="cuda")
        self.yb = torch.zeros(bs, dtype=torch.long, device="cuda")
        self.opt = optim.SGD(net.parameters(), lr=lr)
        self.replay = common.recorded(self.step)
        net.load_state_dict(start)

    def step(self):
        loss = F.cross_entropy(self.net(self.xb), self.yb)
        loss.backward()
        self.opt.step()
        self.opt.zero_grad()
        self.loss = loss.detach()

    def __call__(self, xb, yb):  # loss
        self.xb.copy_(xb)
        self.yb.copy_(yb)
        self.replay()
        return self.loss


def take_recorded_steps(step, xb, yb, n=repeats):  # loss of the last
    for _ in range(n):
        loss = step(xb, yb)
    return loss.item()


def take_steps_in_one_call(net, images, labels, n=repeats):  # loss of the last
    return net.train_epoch(images[: n * bs], labels[: n * bs], lr)[-1].item()


makers = {
    eager: lambda model: model,
    "`channels_last`": lambda model: model.to(memory_format=torch.channels_last),
    "`torch.compile`": torch.compile,
    ours: FastNet,
    one_call: FastNet,
    graph: Graph,
}


def take_epoch(name, net, dls, images, labels):
    if name == one_call:
        net.train_epoch(images, labels, lr)
        return run_epoch(net, F.cross_entropy, dls[1])
    if name == graph:
        for xb, yb in dls[0]:
            if len(xb) == bs:  # the last batch is smaller, and left out
                net(xb, yb)
        return run_epoch(net.net, F.cross_entropy, dls[1])
    opt = optim.SGD(net.parameters(), lr=lr)
    return fit(1, net, F.cross_entropy, opt, *dls, log=lambda line: None)


def first_step(name, device):  # seconds
    model = get_model().to(device)
    batch = torch.rand(bs, 1, 28, 28).to(device), torch.randint(10, (bs,)).to(device)
    # a first optimizer loads what it needs, which isn't compiling
    optim.SGD(model.parameters(), lr=lr)
    begin = time.perf_counter()
    net = makers[name](model)
    if name == one_call:
        net.train_epoch((255 * batch[0]).byte(), batch[1], lr)
    elif name == graph:
        net(*batch).item()
    else:
        take_steps(net, optim.SGD(net.parameters(), lr=lr), *batch, n=1)
    return time.perf_counter() - begin


def first_steps(name, device):  # [seconds with an empty cache, seconds with what that left there]
    with tempfile.TemporaryDirectory() as cache:
        folders = {"NUMBA_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
        with patch.dict(os.environ, folders):
            return [common.in_new_process(first_step, name, device) for _ in range(2)]


@call_parse
def main(
    rounds: common.positive = 20,  # how often to measure each
    save: bool = False,  # put the tables into benchmarks/README.md
):
    "Measure a step and an epoch."
    load = common.wait_for_rest(save)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    dls = {d: fashion_mnist(bs, device=d) for d in devices}
    ways = {f"{name}, {d}": (name, d) for d in devices for name in makers}
    only = {graph: "cuda", ours: "cpu", one_call: "cpu"}
    ways = {title: (name, d) for title, (name, d) in ways.items() if only.get(name, d) == d}
    compiling = {title: first_steps(*way) for title, way in tqdm(ways.items(), "first steps")}

    torch.manual_seed(42)
    start = get_model().cpu()
    nets = {t: makers[name](copy.deepcopy(start).to(d)) for t, (name, d) in ways.items()}
    images, labels = load_images("fashion_mnist", "train")
    images = images[:, None]
    xb, yb = images[:bs].float() / 255, labels[:bs]
    runs = {}
    for title, (name, d) in ways.items():
        if name == one_call:
            runs[title] = partial(take_steps_in_one_call, nets[title], images, labels)
            continue
        if name == graph:
            runs[title] = partial(take_recorded_steps, nets[title], xb.to(d), yb.to(d))
            continue
        opt = optim.SGD(nets[title].parameters(), lr=lr)
        runs[title] = partial(take_steps, nets[title], opt, xb.to(d), yb.to(d))
    losses = {title: run(1) for title, run in runs.items()}
    if max(losses.values()) - min(losses.values()) > 1e-3:
        sys.exit(f"step: unlike losses: {losses}")
    steps, _ = common.interleave(runs, rounds)
    whole = {
        t: partial(take_epoch, name, nets[t], dls[d], images, labels)
        for t, (name, d) in ways.items()
    }
    epochs, _ = common.interleave(whole, rounds)

    def compare(seconds):  # rows of a table; ratios to the first way on the same device
        parts = [{t: s for t, s in seconds.items() if ways[t][1] == d} for d in devices]
        return [row for part in parts for row in common.compare(part, next(iter(part)))]

    steps = {t: [1000 * s / repeats for s in taken] for t, taken in steps.items()}  # ms
    counts, best = products(nets[f"{ours}, cpu"].plan((1, 28, 28))[0]), peak()
    needed = (3 * sum(counts) - counts[0]) * bs
    names = one_call, ours, eager
    shares = [f"{1000 * needed / best / median(steps[f'{n}, cpu']):.0%}" for n in names]
    parts = [
        common.machine("numba", load=load),
        f"One training step on {bs} images (forward, loss, backward, SGD); `FastNet` is that of lesson 10, "
        "and `FastNet.train_epoch` takes its steps in one call and picks its images itself. "
        f"Medians of {rounds} rounds of {repeats} steps, in random order; ratios to PyTorch eager on the "
        "same device, taken within a round. The first step of a process compiles, or finds the work in a "
        "cache.",
        common.table(
            ("way", "ms a step", "ratio", "quartiles", "first step, s", "the same, cached"),
            [(*row, *compiling[row[0]]) for row in compare(steps)],
        ),
        f"The step needs {needed / 1e6:.1f} million multiply-adds, {1000 * needed / best:.2f} ms at the "
        f"measured peak of {best / 1e9:.0f} billion per second. An epoch in one call reaches {shares[0]} of "
        f"it, `FastNet` in PyTorch's loop {shares[1]}, PyTorch eager {shares[2]}.",
        f"An epoch by `fit` on `fashion_mnist({bs})`, or in one call, and its validation, {rounds} of each:",
        common.table(("way", "seconds", "ratio", "quartiles"), compare(epochs)),
    ]
    common.report("step", parts, save)
