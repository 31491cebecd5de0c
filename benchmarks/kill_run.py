"""A run that is killed with SIGKILL at random moments, and started again with the same line each time.

    python benchmarks/kill_run.py             # 40 kills: some three minutes on two cores
    python benchmarks/kill_run.py --kills 100

Trains the lesson's CNN, with dropout in it, by AdamW and a one-cycle schedule, on the sample. Exit status 0
if weights and figures are those of a run that nobody disturbed, bit for bit.
"""

import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn, optim
from tqdm import tqdm

from slowconv.convs import get_model
from slowconv.data import fashion_mnist
from slowconv.training import fit


def run(epochs, checkpoint=None, out=None):  # (weights, validation losses)
    "The line that is killed."
    torch.set_num_threads(1)
    torch.manual_seed(42)
    dls = fashion_mnist(256, source="sample")
    model = nn.Sequential(nn.Dropout(0.1), get_model())
    opt = optim.AdamW(model.parameters())
    sched = optim.lr_scheduler.OneCycleLR(opt, 0.02, total_steps=epochs * len(dls.train))
    keep = {"checkpoint": checkpoint, "log": lambda line: None}
    history = fit(epochs, model, F.cross_entropy, opt, *dls, sched=sched, **keep).history
    result = model.state_dict(), [record["validation loss"] for record in history]
    if out:
        torch.save(result, out)
    return result


def modified(path):
    return path.stat().st_mtime_ns if path.exists() else 0


@call_parse
def main(
    kills: common.positive = 40,  # how often the run is killed
    seed: int = 1,  # of the random moments
):
    "Kill, start again, compare."
    rng, epochs, met = random.Random(seed), 5 * kills, Counter()
    begin = time.monotonic()
    weights, losses = run(epochs)
    seconds = (time.monotonic() - begin) / epochs
    print(f"{epochs} epochs of {seconds:.2f} s undisturbed; now with {kills} kills", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "run.pt", Path(folder) / "weights.pt"
        for kill in tqdm(range(kills + 1), "runs"):
            before = modified(path)
            process = multiprocessing.get_context("fork").Process(
                target=run, args=(epochs, path, out)
            )
            process.start()
            process.join(rng.uniform(0, 4 * seconds + 1.2) if kill < kills else None)
            if process.exitcode is None:
                process.kill()
                process.join()
                met["no new epoch" if modified(path) == before else "some new epochs"] += 1
        found, figures = torch.load(out) if process.exitcode == 0 else ({}, [])
    same = figures == losses and all(torch.equal(found[k], v) for k, v in weights.items())
    print(f"{met.total()} kills: {dict(met)}")
    print("weights and figures are " + ("the same, bit for bit" if same else "NOT the same"))
    sys.exit(not same or met.total() < kills)
