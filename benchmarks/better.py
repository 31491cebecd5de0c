"""One change at a time: start, step, schedule, batch, inputs and head of the lesson's CNN, over seeds.

    python benchmarks/better.py                    # all changes, five seeds: half an hour on two cores
    python benchmarks/better.py --only start,norm  # only changes whose names begin so

Trains on 55,000 images and judges by 5,000 that are cut from the training set: the test set is left alone.
Each result is a line in benchmarks/better.jsonl; what is there already is not run again.
"""

import json
import sys
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from slowconv.better import FlipShift, Normalize, pooled_head, with_batchnorm
from slowconv.convs import conv, get_model, init_weights
from slowconv.data import ColumnDataset, DataLoaders, fashion_collate, load_images
from slowconv.training import fit

epochs = 6


def default_start():
    "get_model with the weights that torch gives it"
    model = get_model()
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            m.reset_parameters()
    return model


def trunk(*cs):
    return [conv(ni, nf) for ni, nf in zip((1, *cs), cs, strict=False)]


def dense_head():
    "three layers as before, down to 16 maps of 4x4, and each of these numbers has a weight for each class"
    return nn.Sequential(*trunk(4, 8, 16), nn.Flatten(), nn.Linear(256, 10)).apply(init_weights)


def mean_head():
    "four layers as before, the mean of each map, and a weight for each mean and class"
    return nn.Sequential(*trunk(4, 8, 16, 16), pooled_head(16)).apply(init_weights)


def no_dead():
    "the last kernel cut to the 2x2 that sees pixels, and what it saves given to channels"
    last = nn.Conv2d(19, 10, 2)
    return nn.Sequential(*trunk(4, 8, 17, 19), last, nn.Flatten()).apply(init_weights)


def normalized(make=get_model):
    return nn.Sequential(Normalize(0.286, 0.353), make())


def batchnormed():
    return nn.Sequential(Normalize(0.286, 0.353), with_batchnorm(get_model()))


def augmented():
    return nn.Sequential(FlipShift(2), batchnormed())


def sgd(lr, momentum=0.0):
    return lambda ps, steps: (optim.SGD(ps, lr, momentum), None)


def adamw(lr):
    return lambda ps, steps: (optim.AdamW(ps, lr), None)


def one_cycle(make, lr):
    def both(ps, steps):
        opt = make(ps, steps)[0]
        return opt, OneCycleLR(opt, lr, steps, cycle_momentum=False)

    return both


adam_cycle = one_cycle(adamw(0.02), 0.02)

# name: model, optimiser and schedule, batch size
changes = {
    "lesson 04": (get_model, sgd(0.1), 256),
    "start: torch's default": (default_start, sgd(0.1), 256),
    "step: lr 0.03": (get_model, sgd(0.03), 256),
    "step: lr 0.3": (get_model, sgd(0.3), 256),
    "step: momentum 0.9, lr 0.02": (get_model, sgd(0.02, 0.9), 256),
    "step: AdamW, lr 0.005": (get_model, adamw(0.005), 256),
    "schedule: one cycle, SGD to lr 0.3": (get_model, one_cycle(sgd(0.3), 0.3), 256),
    "schedule: one cycle, AdamW to lr 0.02": (get_model, adam_cycle, 256),
    "batch: 64": (get_model, sgd(0.1), 64),
    "batch: 1024": (get_model, sgd(0.1), 1024),
    "norm: inputs standardised": (normalized, sgd(0.1), 256),
    "norm: inputs, and BatchNorm": (batchnormed, sgd(0.1), 256),
    "head: dense on 4x4": (dense_head, sgd(0.1), 256),
    "head: mean of each map": (mean_head, sgd(0.1), 256),
    "head: no dead weights": (no_dead, sgd(0.1), 256),
    "all: norm, AdamW, one cycle": (batchnormed, adam_cycle, 256),
    "all: and flips and shifts": (augmented, adam_cycle, 256),
}


def split():
    "The training set's images and labels in two parts, always the same ones."
    images, labels = load_images("fashion_mnist", "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order[5000:], order[:5000]
    return [{"image": images[at], "label": labels[at]} for at in parts]


def loaders(train, valid, bs):
    "`DataLoaders` of columns in memory, the first of them shuffled."
    sets = [ColumnDataset(columns) for columns in (train, valid)]
    return DataLoaders(*(DataLoader(s, bs, s is sets[0], collate_fn=fashion_collate) for s in sets))


def run(name, seed, parts):
    "(validation accuracy of each epoch, parameters)"
    make, both, bs = changes[name]
    torch.manual_seed(seed)
    model = make()
    dls = loaders(*parts, bs)
    opt, sched = both(model.parameters(), epochs * len(dls.train))
    quiet = {"sched": sched, "log": lambda line: None}
    history = fit(epochs, model, F.cross_entropy, opt, *dls, **quiet).history
    n = sum(p.numel() for p in model.parameters())
    return [record["validation accuracy"] for record in history], n


@call_parse
def main(
    seeds: common.positive = 5,  # runs of each change
    only: str = "",  # beginnings of names, with commas; all without it
    out: str = "",  # where the results go; beside this script without it
):
    "Run what has not been run."
    path = Path(out) if out else Path(__file__).with_suffix(".jsonl")
    done = set()
    if path.exists():
        done = {(r["change"], r["seed"]) for r in map(json.loads, path.read_text().splitlines())}
    begin = tuple(only.split(",")) if only else ("",)
    names = [n for n in changes if n.startswith(begin)]
    if not names:
        sys.exit(f"better: no name begins with {only!r}; there are {', '.join(changes)}")
    jobs = [(n, s) for s in range(seeds) for n in names if (n, s) not in done]
    parts = split()
    for name, seed in tqdm(jobs):
        accuracies, n = run(name, seed, parts)
        row = {"change": name, "seed": seed, "parameters": n, "accuracy": accuracies}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
