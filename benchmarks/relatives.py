"""Lesson 04's network with strides, pooling, or a blur before or behind each stride, on moved garments.

    python benchmarks/relatives.py    # 45 minutes on one core

Trains on 55,000 images and judges by 5,000 that are cut from the training set: the test set is left alone.
First each network's learning rate is chosen, with two seeds that aren't used again. Then come the runs.
Each is a line in benchmarks/relatives.jsonl; what is there already is not run again.
"""

from functools import partial
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from better import loaders, split
from fastcore.script import call_parse
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

from slowconv.convs import conv, get_model, init_weights
from slowconv.inside import shift_accuracy
from slowconv.training import fit

rates, other_seeds = (0.01, 0.02, 0.04, 0.08, 0.16), (100, 101)
config = {
    "epochs": 6,
    "batch": 256,
    "optimizer": "AdamW, weight decay 0.01",
    "schedule": "one cycle up to lr, constant momentum",
    "judged on": "5,000 images cut from the training set",
}


class Blur(nn.Module):
    "Blur each channel, and keep every second place (arxiv.org/abs/1904.11486), or every place."

    def __init__(self, stride=2):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        row = torch.tensor([1.0, 2, 1]) / 4
        kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, kernel, stride=self.stride, groups=x.shape[1])


def halved_by(halve):
    "get_model at stride 1, with `halve` after each layer"
    layers = []
    for ni, nf in ((1, 4), (4, 8), (8, 16), (16, 16), (16, 10)):
        layers += [conv(ni, nf, stride=1, act=nf != 10), halve]
    return nn.Sequential(*layers, nn.Flatten()).apply(init_weights)


def mean_at_end():
    "get_model with its last layer at stride 1, and the mean of the four places that it then has"
    model = get_model().cpu()
    model[4].stride = 1, 1
    return model.insert(5, nn.AdaptiveAvgPool2d(1))


def wide_kernels():
    "get_model with 5x5 kernels: layer by layer, a unit's window is as large as with the blur"
    sizes = ((1, 4), (4, 8), (8, 16), (16, 16), (16, 10))
    layers = [conv(ni, nf, ks=5, act=nf != 10) for ni, nf in sizes]
    return nn.Sequential(*layers, nn.Flatten()).apply(init_weights)


def blur_behind():
    "get_model, with a blur behind the strides, where it's too late to keep fast waves out"
    model = get_model().cpu()
    for at in (4, 3, 2, 1):
        model.insert(at, Blur(stride=1))
    return model


networks = {  # with the same seed, all but the 5x5 kernels begin with the same weights
    "stride": lambda: get_model().cpu(),
    "stride, mean at the end": mean_at_end,
    "stride, 5x5 kernels": wide_kernels,
    "stride, then blur": blur_behind,
    "max pooling": partial(halved_by, nn.MaxPool2d(2, ceil_mode=True)),
    "average pooling": partial(halved_by, nn.AvgPool2d(2, ceil_mode=True)),
    "blur": partial(halved_by, Blur()),
}


def run(name, lr, seed, parts):  # a line of the file
    torch.manual_seed(seed)
    model, dls = networks[name](), loaders(*parts, config["batch"])
    opt = optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    steps = config["epochs"] * len(dls.train)
    sched = OneCycleLR(opt, lr, steps, cycle_momentum=False)
    fit(config["epochs"], model, F.cross_entropy, opt, *dls, sched=sched, log=lambda line: None)
    accs = shift_accuracy(model.eval(), parts[1]["image"][:, None] / 255, parts[1]["label"])
    accs = [[round(a, 4) for a in row] for row in accs.tolist()]
    row = {
        "network": name,
        "lr": lr,
        "seed": seed,
        **config,
        "torch": torch.__version__.split("+")[0],
    }
    return row | {"accuracy by move": accs}


@call_parse
def main(
    seeds: common.positive = 5,  # runs of each network
    out: str = "",  # where the results go; beside this script without it
):
    "Run what has not been run."
    torch.set_num_threads(1)
    path, parts = Path(out) if out else Path(__file__).with_suffix(".jsonl"), split()
    rows = common.read_runs(path)
    done = {(r["network"], r["lr"], r["seed"]): r for r in rows if config.items() <= r.items()}

    def centre(*job):  # accuracy on images that aren't moved
        if job not in done:
            done[job] = run(*job, parts)
            common.add_run(path, done[job])
        return done[job]["accuracy by move"][4][4]

    for name in tqdm(networks):
        lr = max(rates, key=lambda lr: sum(centre(name, lr, seed) for seed in other_seeds))
        for seed in tqdm(range(seeds), name):
            centre(name, lr, seed)
