"""The runs of lessons 06 and 12: single changes to lesson 04's network, and the best without this or that.

    python benchmarks/better.py changes    # six epochs each: half an hour on one core
    python benchmarks/better.py controls   # six epochs each: an hour
    python benchmarks/better.py changes --only "batches,mean head"
    python benchmarks/better.py check      # five rows once more, by plain PyTorch: seven minutes

Runs train on 55,000 training images and are judged by the 5,000 others: the test set is left alone. Before
that, each row's learning rate is sought, on other seeds and with 5,000 other images: 0.01, 0.02, 0.05, 0.1,
... until the best one has a worse neighbour on both sides. If one of a row's runs dies, all are run again
at the next lower rate. Each run is a line in benchmarks/better.jsonl; what is there already is not run
again.
"""

import sys
from functools import partial
from pathlib import Path
from statistics import mean

import common
import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn, optim
from torch.utils.data import DataLoader

from slowconv.best import Residual, get_best_model
from slowconv.better import FlipShift, Normalize, changes, cycle, shifts
from slowconv.convs import get_model
from slowconv.data import ColumnDataset, DataLoaders, fashion_collate, load_images
from slowconv.fast import FastNet
from slowconv.inside import shift_accuracy
from slowconv.training import fit, run_epoch


def no_residuals():
    model = new()
    for m in model.modules():
        if type(m) is Residual:
            m.__class__ = nn.Sequential  # the same layers, nothing added
    return model


def no_batchnorm(make):
    model = make()
    for m in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
        for i, bn in enumerate(m):
            if isinstance(bn, nn.BatchNorm2d):
                m[i - 1].bias, m[i] = nn.Parameter(torch.zeros(bn.num_features)), nn.Identity()
    return model


new, augment = partial(get_best_model, trained=False), partial(FlipShift, 1)
controls = {
    "best network": {"make": new, "augment": augment},
    "best without residuals": {"make": no_residuals, "augment": augment},
    "best without BatchNorm": {"make": partial(no_batchnorm, new), "augment": augment},
    "best without residuals and BatchNorm": {
        "make": partial(no_batchnorm, no_residuals),
        "augment": augment,
    },
    "best without flips": {"make": new, "augment": shifts},
    "best without flips and shifts": {"make": new},
    "lesson 04's network": {"augment": augment},
    "lesson 04's with BatchNorm": changes["BatchNorm"] | {"augment": augment},
    "lesson 04's, 32 epochs": {"augment": augment, "epochs": 32},
    "lesson 04's without flips": {"augment": shifts},
    "lesson 04's without flips and shifts": {},
    "lesson 04's without flips and shifts, 32 epochs": {"epochs": 32},
}
# rows and their learning rates
plain = {
    "lesson 04": 0.2,
    "momentum": 0.05,
    "AdamW": 0.01,
    "one cycle": 0.5,
    "AdamW + one cycle": 0.05,
}
check = {f"{n}, by PyTorch": changes[n] | {"quick": False, "lr": lr} for n, lr in plain.items()}
recipe = {"opt": optim.AdamW, "sched": partial(cycle, pct_start=0.2)}  # as in best.py
controls = {name: row | recipe for name, row in controls.items()}
usual = {
    "make": get_model,
    "opt": optim.SGD,
    "sched": None,
    "augment": None,
    "bs": 256,
    "quick": True,
}
# rows, epochs; seeds and epochs to seek the learning rate with
tables = {
    "changes": (changes, 6, [100, 101], 6),
    "controls": (controls, 6, [100], 2),
    "check": (check, 6, [], 0),
}
rates = [m * 10**e for e in range(-4, 2) for m in (1, 2, 5)]


def split(first=0):
    "The training set's images and labels: without 5,000 from `first` on and those before, and these 5,000."
    images, labels = load_images("fashion_mnist", "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order[first + 5000 :], order[first : first + 5000]
    return [{"image": images[at], "label": labels[at]} for at in parts]


def loaders(train, valid, bs, generator=None):
    "`DataLoaders` of columns in memory, the first of them shuffled."
    sets = [ColumnDataset(columns) for columns in (train, valid)]
    options = {"collate_fn": fashion_collate, "generator": generator}
    return DataLoaders(*(DataLoader(s, bs, s is sets[0], **options) for s in sets))


class Compiled(nn.Module):
    "`net`, compiled for full batches in training."

    def __init__(self, net, bs):
        super().__init__()
        torch._dynamo.reset()
        self.net, self.bs, self.compiled = net, bs, [torch.compile(net, dynamic=False)]

    def forward(self, x):
        return (self.compiled[0] if self.training and len(x) == self.bs else self.net)(x)


def quicken(net, bs):
    "The same network, sooner: by lesson 10's FastNet where it can, compiled if it's deep."
    if isinstance(net[0], Normalize) and len(net) == 2:
        return nn.Sequential(net[0], FastNet(net[1]))
    try:
        return FastNet(net)
    except ValueError:
        return net if len(net) < 8 else Compiled(net, bs)


def run(name, row, seed, lr, epochs, parts, more):  # a line of the file
    "One run; with `more`, also its accuracy on training images and on moved ones."
    torch.manual_seed(seed)
    net = row["make"]()
    model = quicken(net, row["bs"]) if row["quick"] else net  # by faster code, where there is some
    opt = row["opt"](model.parameters(), lr)
    torch.manual_seed(seed)  # the same flips and shifts for every network
    dls = loaders(*parts, row["bs"], torch.Generator().manual_seed(seed))  # and the same batches
    sched = row["sched"] and row["sched"](opt, lr, epochs * len(dls.train))
    augment = row["augment"] and row["augment"]()
    line = {"name": name, "seed": seed, "lr": lr, "epochs": epochs, "batch": row["bs"]}
    line["parameters"] = sum(p.numel() for p in net.parameters())
    line["optimizer"] = (
        f"{type(opt).__name__}{' with momentum' * bool(opt.defaults.get('momentum'))}"
    )
    line["one cycle"] = sched and {"momentum": bool(sched.cycle_momentum)}
    line["augmentation"] = augment and {"flips": augment.flip, "shifts": augment.shift}
    whole = nn.Sequential(augment, model) if augment else model
    try:
        history = fit(epochs, whole, F.cross_entropy, opt, *dls, sched=sched, log=str).history
    except FloatingPointError:  # this rate was too high
        return line | {"accuracy": [0.1] * epochs}
    line["accuracy"] = [round(r["validation accuracy"], 4) for r in history]
    if more:
        few, some = (
            {k: v[:n] for k, v in p.items()} for p, n in zip(parts, (5000, 1000), strict=True)
        )
        seen = run_epoch(model, F.cross_entropy, loaders(few, few, 250).valid)
        line["training accuracy"] = round(seen[1], 4)
        (batch,) = loaders(some, some, 1000).valid
        line["shifted"] = [[round(a, 3) for a in r] for r in shift_accuracy(model, *batch).tolist()]
    return line


@call_parse
def main(
    table: str,  # changes, controls or check
    only: str = "",  # beginnings of names, with commas; all without it
    seeds: int = 5,  # runs of each row
    out: str = "",  # where the results go; beside this script without it
):
    "Run what has not been run."
    if table not in tables:
        sys.exit(f"better: {table!r} is none of {', '.join(tables)}")
    torch.set_num_threads(1)
    path = Path(out) if out else Path(__file__).with_suffix(".jsonl")
    rows, epochs, others, short = tables[table]
    names = [n for n in rows if n.startswith(tuple(only.split(",")))]
    if not names:
        sys.exit(f"better: no name begins with {only!r}; there are {', '.join(rows)}")
    parts = {False: split(), True: split(5000)}

    def get(name, seed, lr, epochs, seeking):  # the line of a run
        key = {"name": name, "seed": seed, "lr": lr, "epochs": epochs}
        for line in common.read_runs(path):
            if key.items() <= line.items():
                return line
        more = not seeking and table != "check"
        line = run(name, usual | rows[name], seed, lr, epochs, parts[seeking], more)
        common.add_run(path, {"table": table, "seeking": seeking} | line)
        return line

    def seek(name):  # which of the rates
        opt = (usual | rows[name])["opt"]
        guess = 0.1 if opt is optim.SGD else 0.05 if table == "controls" else 0.02
        at, found = rates.index(guess), {}
        todo = [at - 1, at, at + 1]
        while todo:
            for i in todo:
                tries = [get(name, s, rates[i], short, True)["accuracy"][-1] for s in others]
                found[i] = mean(tries)
            top = max(found, key=found.get)
            todo = [i for i in (top - 1, top + 1) if i not in found and 0 <= i < len(rates)]
        return top

    for name in names:
        lr, n = rows[name].get("lr"), rows[name].get("epochs", epochs)
        at = rates.index(lr) if lr else seek(name)
        last = [0]
        while min(last) < 0.11:
            lines = [get(name, seed, rates[at], n, False) for seed in range(seeds)]
            last = [line["accuracy"][-1] for line in lines]
            print(f"{name}, rate {rates[at]}: {last}", flush=True)
            at -= 1  # if one of them died
