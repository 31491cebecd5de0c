"""From images in memory to an accuracy of 0.90, in seconds: lesson 14, a chain of changes to lesson 04.

    python benchmarks/speedrun.py choose      # five runs of each row: three minutes on two cores
    python benchmarks/speedrun.py run         # 20 runs of the last two rows: seven minutes at rest
    python benchmarks/speedrun.py run --save  # and its tables go into benchmarks/README.md

`choose` trains on 55,000 images and judges by 5,000 that are cut from the training set. What the changes
should be was tried out on 5,000 others. `run` trains on all 60,000 images and asks the test images once a
run. Each run is a line in benchmarks/speedrun.jsonl; what `choose` finds there is not run again.
"""

import json
import os
import sys
import tempfile
import time
from itertools import accumulate
from math import sqrt
from operator import or_
from pathlib import Path
from statistics import mean, median, stdev
from unittest.mock import patch

import common
import numpy as np
import torch
from better import split
from fastcore.script import call_parse
from torch import nn
from tqdm import tqdm

from slowconv.convs import init_weights
from slowconv.data import load_images
from slowconv.fast import FastNet, products

lesson = {
    # channels, kernel, stride, padding
    "layers": [[4, 3, 2, 1], [8, 3, 2, 1], [16, 3, 2, 1], [16, 3, 2, 1], [10, 3, 2, 1]],
    "lr": 0.1,
    "batch": 256,
    "epochs": 6,
}
changes = {
    "lesson 04": lesson,
    "momentum": {"momentum": 0.9},
    "one cycle": {"one cycle": True},
    "no padding": {"layers": [[4, 3, 2, 0], [8, 3, 2, 0], [16, 4, 2, 0], [10, 2, 1, 0]]},
    "4x channels": {"layers": [[16, 3, 2, 0], [32, 3, 2, 0], [64, 4, 2, 0], [10, 2, 1, 0]]},
    "inputs standardised": {"standardised": True},
    "batches of 64": {"batch": 64},
    "mirrored in training": {"mirrored in training": True},
    "mirrored in the test": {"mirrored in the test": True},
    "12 epochs": {"epochs": 12},
}
chain = dict(zip(changes, accumulate(changes.values(), or_), strict=True))
goals = {"mirrored in the test": 5, "12 epochs": 10}  # seconds for each


def network(config):
    ni, layers = 1, []
    for nf, *shape in config["layers"]:
        layers += [nn.Conv2d(ni, nf, *shape), nn.ReLU()]
        ni = nf
    return nn.Sequential(*layers[:-1], nn.Flatten()).apply(init_weights)


def rates(config, steps):  # one for each
    if "one cycle" not in config:
        return np.full(steps, config["lr"])
    return np.interp((np.arange(steps) + 0.5) / steps, (0, 0.2, 1), (0, config["lr"], 0))


def train(config, images, labels, seed):  # (FastNet, seconds)
    begin = time.perf_counter()
    torch.manual_seed(seed)
    model = network(config)
    if "standardised" in config:  # the first layer's weights take care of it
        std, centre = torch.std_mean(images[:1000] / 255)
        with torch.no_grad():
            model[0].weight /= std
            model[0].bias -= centre * model[0].weight.sum((1, 2, 3))
    if "mirrored in training" in config:  # half of them; each epoch then turns all
        half = torch.rand(len(images), 1, 1, 1) < 0.5
        images = torch.where(half, images.flip(3), images)
    net, steps = FastNet(model), -(-len(images) // config["batch"])
    for lrs in rates(config, config["epochs"] * steps).reshape(-1, steps):
        net.train_epoch(images, labels, lrs, config.get("momentum", 0), config["batch"])
        if "mirrored in training" in config:
            images = images.flip(3)
    return net, time.perf_counter() - begin


def judge(config, net, images, labels):  # accuracy
    with torch.no_grad():
        logits = net(images / 255)
        if "mirrored in the test" in config:
            logits += net(images.flip(3) / 255)
    return round((logits.argmax(1) == labels).float().mean().item(), 4)


def choose(path, runs):
    (x, y), judged = ([part["image"][:, None].contiguous(), part["label"]] for part in split())
    before = common.read_runs(path)
    for name, config in chain.items():
        for seed in range(runs):
            key = {"step": "choose", "change": name, "seed": seed, **config}
            if any(key.items() <= line.items() for line in before):
                continue
            net, _ = train(config, x, y, seed)
            line = key | {"parameters": len(net.weights), "accuracy": judge(config, net, *judged)}
            print(name, line["accuracy"], flush=True)
            common.add_run(path, line)


def first_call():  # seconds
    images, labels = torch.zeros(64, 1, 28, 28, dtype=torch.uint8), torch.zeros(64).long()
    return train(chain["12 epochs"] | {"epochs": 1}, images + torch.eye(28).byte(), labels, 0)[1]


def first_calls():  # [seconds with an empty cache, seconds with what that left there]
    with tempfile.TemporaryDirectory() as cache:
        with patch.dict(os.environ, {"NUMBA_CACHE_DIR": cache}):
            return [common.in_new_process(first_call) for _ in range(2)]


def run(path, runs, save):
    load, compiling = common.wait_for_rest(save), first_calls()
    train_set, test_set = (
        (images[:, None].contiguous(), labels)
        for images, labels in (load_images("fashion_mnist", part) for part in ("train", "test"))
    )
    first_call()
    chosen = [line for line in common.read_runs(path) if line["step"] == "choose"]
    lines, rows = [], []
    for name, config in tqdm(chain.items(), "rows"):
        tried = [line for line in chosen if line["change"] == name]
        if not tried or any(not config.items() <= line.items() for line in tried):
            sys.exit(f"speedrun: {path.name} has no runs of {name!r} as it is now: choose first")
        nets, taken = zip(*(train(config, *train_set, seed) for seed in range(3)), strict=True)
        net, seconds = nets[0], median(taken)
        counts = products(net.plan((1, 28, 28))[0])
        lines.append({"step": "time", "change": name, "seconds": round(seconds, 2)})
        cells = f"{len(net.weights):,}", f"{sum(counts):,}", seconds
        rows.append((name, *cells, f"{mean(line['accuracy'] for line in tried):.3f}"))
    tests = []
    for name, seconds in goals.items():
        found = []
        for seed in tqdm(range(runs), name):
            net, taken = train(chain[name], *train_set, seed)
            accuracy = judge(chain[name], net, *test_set)
            found.append((accuracy, taken))
            line = {"step": "test", "change": name, "seed": seed, "accuracy": accuracy}
            lines.append(line | {"seconds": round(taken, 2)})
        accs, taken = zip(*found, strict=True)
        error = 2 * stdev(accs) / sqrt(runs) if runs > 1 else float("nan")
        cells = f"{mean(accs):.4f} ± {error:.4f}", f"{min(accs):.4f} to {max(accs):.4f}"
        tests.append((name, *cells, f"{median(taken):.1f} ({max(taken):.1f})", f"{seconds}"))
    if save:
        path.write_text("".join(json.dumps(line) + "\n" for line in chosen + lines))
    parts = [
        common.machine("numba", load=load),
        "Each row is one more change to lesson 04's network and how it's trained. Seconds are the median of "
        "three runs on 60,000 images, from images in memory to trained weights. The accuracy is the mean of "
        f"{len(tried)} runs on 55,000 images, judged on the 5,000 others of the training set.",
        common.table(("change", "parameters", "multiplications", "seconds", "accuracy"), rows),
        f"{runs} runs of the last two, on the 10,000 test images: mean accuracy, with two standard errors. "
        f"Compiling comes before, and takes {compiling[0]:.0f} s once, and {compiling[1]:.1f} s in a process "
        "that finds the work in the cache.",
        common.table(("", "test accuracy", "range", "seconds: median (most)", "goal"), tests),
    ]
    common.report("speedrun", parts, save)


@call_parse
def main(
    what: str,  # choose or run
    runs: int = 0,  # of each row; 5 to choose and 20 to run without it
    out: str = "",  # where the runs go; beside this script without it
    save: bool = False,  # run: keep its lines, and put its tables into benchmarks/README.md
):
    "Choose or run."
    path = Path(out) if out else Path(__file__).with_suffix(".jsonl")
    if what == "choose":
        choose(path, runs or 5)
    elif what == "run":
        run(path, runs or 20, save)
    else:
        sys.exit(f"speedrun: {what!r} is neither choose nor run")
