"""Accurate networks of few numbers: trained from five seeds each, and tested once.

    python benchmarks/best.py train              # every row of the board: an hour and a half on two cores
    python benchmarks/best.py train --only 500   # one row: 10 to 30 minutes
    python benchmarks/best.py test               # the only use of the test set; a line in best.jsonl for each
                                                 # network, and slowconv/best.safetensors

A number is what a file needs, with each BatchNorm worked into its convolution. Shapes and recipes were chosen
on images cut from the training set. What that said is kept in best.jsonl: the lines "choose", for 5,274
numbers, and "search", from a GPU (40 epochs on 50,000 images, judged by the 10,000 others; "teacher"
is the share of a larger network's answers in the loss). The lines "earlier" are tests of the last two rows
with other recipes. Rows are trained on all 60,000 images, a network on each core. What is there already isn't
run again, and an interrupted run goes on after its last epoch.
"""

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from better import loaders
from common import bs, here
from fastcore.script import call_parse
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

from slowconv.best import residual_net
from slowconv.better import FlipShift
from slowconv.convs import def_device
from slowconv.data import fashion_mnist, load_images
from slowconv.training import fit, run_epoch

results, seeds, lr = here / "best.jsonl", 5, 0.02
board = {  # at most so many numbers: arguments of `residual_net`, epochs, pixels of shift, flips?
    500: {"shape": [4, [8, 2]], "epochs": 60, "shift": 0, "flip": False},
    1000: {"shape": [4, [7, 2], [13, 1]], "epochs": 32, "shift": 0, "flip": False},
    2000: {"shape": [6, [11, 3], [19, 1]], "epochs": 40, "shift": 0, "flip": False},
    5274: {"shape": [8, [16, 4], [28, 2]], "epochs": 40, "shift": 1, "flip": False},
}


def numbers(model):
    "What a file needs: a convolution with its BatchNorm worked in needs a bias, and no factor and offset."
    channels = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    return sum(p.numel() for p in model.parameters()) - channels


def train(limit, seed, out):
    "AdamW and one cycle; the weights go to a file."
    torch.set_num_threads(1)
    row, path = board[limit], out / f"{limit}-{seed}.safetensors"
    images, labels = load_images("fashion_mnist", "train")
    few = {"image": images[:bs], "label": labels[:bs]}  # `fit` wants something to validate on
    torch.manual_seed(seed)
    model = residual_net(*row["shape"])
    assert numbers(model) <= limit, f"{numbers(model)} numbers"
    dls = loaders({"image": images, "label": labels}, few, bs)
    opt = optim.AdamW(model.parameters(), lr)
    steps = row["epochs"] * len(dls.train)
    sched = OneCycleLR(opt, lr, steps, pct_start=0.2, cycle_momentum=False)
    moved = row["shift"] or row["flip"]
    augmented = nn.Sequential(FlipShift(row["shift"], flip=row["flip"]), model) if moved else model
    begin, saved = time.perf_counter(), path.with_suffix(".ckpt")
    rest = {"sched": sched, "checkpoint": saved, "log": lambda line: None}
    fit(row["epochs"], augmented, F.cross_entropy, opt, *dls, **rest)
    seconds = round(time.perf_counter() - begin)
    note = {"limit": limit, "seed": seed, "seconds": seconds, "threads": 1, "device": def_device}
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, path, {k: str(v) for k, v in note.items()})
    saved.unlink()


def train_all(out, limits):
    todo = [(n, s) for n in limits for s in range(seeds)]
    todo = [(n, s) for n, s in todo if not (out / f"{n}-{s}.safetensors").exists()]
    context = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=common.fork_again) as pool:
        runs = [pool.submit(train, *one, out) for one in todo]
        for run in tqdm(as_completed(runs), "networks", len(runs)):
            run.result()


def test(out, limits):
    "All seeds of each row, once."
    before = [r["limit"] for r in common.read_runs(results) if r["step"] == "test"]
    valid = fashion_mnist().valid
    for limit in limits:
        paths = [out / f"{limit}-{seed}.safetensors" for seed in range(seeds)]
        if limit in before or not all(p.exists() for p in paths):
            print(f"{limit}: tested already, or not trained yet", file=sys.stderr)
            continue
        for path in paths:
            model = residual_net(*board[limit]["shape"])
            model.load_state_dict(load_file(path))
            with safe_open(path, "pt") as file:
                said = file.metadata()
            note = {k: int(said[k]) for k in ("limit", "seed", "seconds", "threads")}
            note["device"] = said.get("device", "cpu")
            loss, accuracy = run_epoch(model, F.cross_entropy, valid)
            line = {"step": "test", "numbers": numbers(model), **board[limit], **note}
            common.add_run(results, line | {"accuracy": accuracy, "loss": loss})
            if (limit, note["seed"]) == (5274, 0):  # fixed before the test
                said = {"trained by": "benchmarks/best.py", "test accuracy": f"{accuracy:.4f}"}
                weights = here.parent / "slowconv" / "best.safetensors"
                save_file(load_file(path), weights, said | {k: str(v) for k, v in note.items()})
            print(f"{limit}, seed {note['seed']}: {accuracy:.4f}")


@call_parse
def main(
    what: str,  # train or test
    only: int = 0,  # one row of the board; all without it
    out: Path = Path("best"),  # folder of the trained weights
):
    "Train or test."
    if what not in ("train", "test") or (only and only not in board):
        sys.exit(f"best: {what} {only}; expected train or test, and of rows {list(board)}")
    out.mkdir(parents=True, exist_ok=True)
    {"train": train_all, "test": test}[what](out, [only] if only else list(board))
