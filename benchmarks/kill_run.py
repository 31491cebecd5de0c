"""A run that is killed with SIGKILL at random moments, again and again, and started again with the same line.

    python benchmarks/kill_run.py             # 40 kills, some three minutes on two cores
    python benchmarks/kill_run.py --kills 100

Trains the lesson's CNN, with dropout in it, by AdamW and a one-cycle schedule, on the sample. Prints what the
kills met, and whether weights and figures are those of a run that was never disturbed, to the last bit.
Exit status 0 if so.
"""

import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn, optim

from slowconv.convs import get_model
from slowconv.data import fashion_mnist
from slowconv.training import fit


def run(epochs, checkpoint=None, out=None):  # weights and figures
    "The line that is killed."
    torch.set_num_threads(1)
    torch.manual_seed(42)
    dls = fashion_mnist(256, source="sample")
    model = nn.Sequential(nn.Dropout(0.1), get_model())
    opt = optim.AdamW(model.parameters())
    sched = optim.lr_scheduler.OneCycleLR(opt, 0.02, total_steps=epochs * len(dls.train))
    args = epochs, model, F.cross_entropy, opt, *dls
    history = fit(*args, sched=sched, checkpoint=checkpoint, log=lambda line: None).history
    result = model.state_dict(), [r["validation loss"] for r in history]
    if out:
        torch.save(result, out)
    return result


@call_parse
def main(
    kills: int = 40,  # how often the run is killed
    seed: int = 1,  # of the random moments
):
    "Kill, start again, compare."
    rng, epochs, met = random.Random(seed), 5 * kills, Counter()
    begin = time.monotonic()
    weights, losses = run(epochs)
    epoch = (time.monotonic() - begin) / epochs
    print(f"{epochs} epochs of {epoch:.2f} s undisturbed; now with {kills} kills", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "run.pt", Path(folder) / "weights.pt"
        for kill in range(kills + 1):
            before = path.stat().st_mtime_ns if path.exists() else 0
            args = epochs, path, out
            process = multiprocessing.get_context("fork").Process(target=run, args=args)
            process.start()
            process.join(rng.uniform(0, 4 * epoch + 1.2) if kill < kills else None)
            if process.exitcode is None:
                process.kill()
                process.join()
                after = path.stat().st_mtime_ns if path.exists() else 0
                met["no epoch more" if after == before else "some epochs more"] += 1
        there, figures = torch.load(out) if process.exitcode == 0 else ({}, [])
    same = figures == losses and all(torch.equal(there[k], v) for k, v in weights.items())
    print(f"{sum(met.values())} kills met: {dict(met)}")
    print("weights and figures are " + ("the very same" if same else "NOT the same"))
    sys.exit(not same or sum(met.values()) < kills)
