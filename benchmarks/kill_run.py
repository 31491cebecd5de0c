"""A run that is killed with SIGKILL at random moments, again and again, and started again with the same line.

    python benchmarks/kill_run.py             # 20 kills, some two minutes on two cores
    python benchmarks/kill_run.py --kills 100

Trains the lesson's CNN, with batch norm in it, by AdamW and a one-cycle schedule, on the sample inside
slowconv. The same line is killed and started again until that has been done often enough; then it may
finish. Prints what the kills met, and whether weights, buffers and figures are those of a run that was
never disturbed, to the last bit. Exit status 0 if so.
"""

import contextlib
import io
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
from safetensors.torch import load_file, save_file
from torch import nn, optim

from slowconv.convs import conv, init_weights
from slowconv.data import fashion_mnist
from slowconv.training import fit


def run(epochs, checkpoint=None):  # (weights and buffers, figures)
    "The line that is killed."
    torch.manual_seed(42)
    sizes = [1, 4, 8, 16, 16]
    layers = [
        nn.Sequential(conv(a, b), nn.BatchNorm2d(b)) for a, b in zip(sizes, sizes[1:], strict=False)
    ]
    model = nn.Sequential(*layers, nn.Dropout(0.1), conv(16, 10, act=False), nn.Flatten())
    model = model.apply(init_weights)
    opt = optim.AdamW(model.parameters())
    with contextlib.redirect_stdout(io.StringIO()), fashion_mnist(256, source="sample") as dls:
        sched = optim.lr_scheduler.OneCycleLR(opt, 0.02, total_steps=epochs * len(dls.train))
        result = fit(epochs, model, F.cross_entropy, opt, *dls, sched=sched, checkpoint=checkpoint)
    figures = [
        [r[k] for k in ("training loss", "validation loss", "accuracy")] for r in result.history
    ]
    return {**model.state_dict(), "figures": torch.tensor(figures, dtype=torch.float64)}


def finish(epochs, path, out):
    torch.set_num_threads(1)
    save_file(run(epochs, path), out)


@call_parse
def main(
    kills: int = 20,  # how often the run is killed
    seed: int = 1,  # of the random moments
):
    "Kill, start again, compare."
    torch.set_num_threads(1)
    rng, epochs, met = random.Random(seed), 3 * kills, Counter()
    context = multiprocessing.get_context("fork")
    begin = time.monotonic()
    straight = run(epochs)
    epoch = (time.monotonic() - begin) / epochs
    print(f"{epochs} epochs of {epoch:.2f} s undisturbed; now with {kills} kills", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "run.safetensors", Path(folder) / "weights"

        def start():
            process = context.Process(target=finish, args=(epochs, path, out))
            process.start()
            return process

        done = 0
        while done < kills:
            before, begin = path.stat().st_mtime_ns if path.exists() else 0, time.time_ns()
            process = start()
            time.sleep(rng.uniform(0, 2 * epoch + 0.2))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break  # it was through before we came
            done += 1
            after = path.stat().st_mtime_ns if path.exists() else 0
            met["no epoch more" if after == before else "some epochs more"] += 1
            left = path.with_name(f".{path.name}.part")  # what the killed process was writing
            met["in the middle of writing"] += left.exists() and left.stat().st_mtime_ns > begin
        process = start()
        process.join()
        there = load_file(out) if process.exitcode == 0 else {}
    same = there.keys() == straight.keys() and all(
        torch.equal(there[k], straight[k]) for k in straight
    )
    print(f"{done} kills met: {dict(met)}")
    print("the weights are " + ("the very same" if same else "NOT the same"))
    sys.exit(not same or done < kills)
