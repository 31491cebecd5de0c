"""An accurate network of at most 5,274 parameters: chosen, trained over five seeds, and tested once.

    python benchmarks/best.py choose  # eight candidates, ten epochs each: an hour
    python benchmarks/best.py train   # the chosen one, 32 epochs: some 20 minutes a seed on one thread
    python benchmarks/best.py test    # the only use of the test set; writes slowconv/best.safetensors

Candidates are judged by 5,000 training images; the chosen one is trained on all 60,000. Results go to
benchmarks/best.jsonl, trained weights to `--out`; what is there already is not run again.
"""

import sys
import time
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from better import loaders, split
from common import bs, here
from fastcore.script import call_parse
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

from slowconv.best import get_best_model, residual_net
from slowconv.better import FlipShift
from slowconv.data import fashion_mnist, load_images
from slowconv.training import fit, run_epoch

results = here / "best.jsonl"
limit, epochs, seeds = 5274, 32, 5

# name: stem and stages, pixels of shift, learning rate
candidates = {
    "8, 16 x3, 30 x2": ((8, (16, 3), (30, 2)), 1, 0.02),
    "12, 16 x3, 30 x2": ((12, (16, 3), (30, 2)), 1, 0.02),
    "8, 16 x4, 28 x2": ((8, (16, 4), (28, 2)), 1, 0.02),
    "8, 12 x4, 26 x3": ((8, (12, 4), (26, 3)), 1, 0.02),
    "8, 14 x3, 20 x2, 28 x1": ((8, (14, 3), (20, 2), (28, 1)), 1, 0.02),
    "8, 16 x3, 30 x2; shift 2": ((8, (16, 3), (30, 2)), 2, 0.02),
    "8, 16 x3, 30 x2; no flips, no shifts": ((8, (16, 3), (30, 2)), None, 0.02),
    "8, 16 x3, 30 x2; lr 0.01": ((8, (16, 3), (30, 2)), 1, 0.01),
}


def train(model, shift, lr, epochs, dls, tqdm_=False):
    "`FitResult` of AdamW and one cycle, with flips and shifts before the model."
    n = sum(p.numel() for p in model.parameters())
    assert n <= limit, f"{n} parameters"
    opt = optim.AdamW(model.parameters(), lr)
    sched = OneCycleLR(opt, lr, epochs * len(dls.train), pct_start=0.2, cycle_momentum=False)
    augmented = model if shift is None else nn.Sequential(FlipShift(shift), model)
    args = epochs, augmented, F.cross_entropy, opt, *dls, tqdm_
    return fit(*args, sched=sched, log=lambda line: None)


def write(**row):
    common.add_run(results, row)


def rows(step):
    return [r for r in common.read_runs(results) if r["step"] == step]


def choose(out):
    done = {r["candidate"] for r in rows("choose")}
    dls = loaders(*split(), bs)
    for name in tqdm([n for n in candidates if n not in done]):
        stages, shift, lr = candidates[name]
        torch.manual_seed(0)
        model = residual_net(*stages)
        result = train(model, shift, lr, 10, dls)
        n = sum(p.numel() for p in model.parameters())
        write(step="choose", candidate=name, parameters=n, accuracy=result.accuracy)


def train_seeds(out):
    images, labels = load_images("fashion_mnist", "train")
    everything = {"image": images, "label": labels}
    few = {"image": images[:bs], "label": labels[:bs]}  # `fit` wants something to validate on
    for seed in range(seeds):
        path = out / f"best-{seed}.safetensors"
        if path.exists():
            continue
        torch.manual_seed(seed)
        model = get_best_model(trained=False)
        begin = time.perf_counter()
        train(model, 1, 0.02, epochs, loaders(everything, few, bs), tqdm_=True)
        note = {"seed": seed, "seconds": round(time.perf_counter() - begin), "epochs": epochs}
        note = {k: str(v) for k, v in (note | {"threads": torch.get_num_threads()}).items()}
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path, note)


def test(out):
    "All seeds once; the weights of seed 0, which was fixed before, go into the package."
    if rows("test"):
        sys.exit(f"best: the test set was used already; {results.name} has what it said")
    for seed in range(seeds):
        path = out / f"best-{seed}.safetensors"
        model = get_best_model(trained=False)
        model.load_state_dict(load_file(path))
        with safe_open(path, "pt") as file:
            note = file.metadata()
        loss, accuracy = run_epoch(model, F.cross_entropy, fashion_mnist().valid)
        n = sum(p.numel() for p in model.parameters())
        numbers = {k: int(v) for k, v in note.items()}
        write(step="test", parameters=n, accuracy=accuracy, loss=loss, **numbers)
        if seed == 0:
            note |= {"trained by": "benchmarks/best.py", "test accuracy": f"{accuracy:.4f}"}
            save_file(load_file(path), here.parent / "slowconv" / "best.safetensors", note)
        print(f"seed {seed}: {accuracy:.4f}")


steps = {"choose": choose, "train": train_seeds, "test": test}


@call_parse
def main(
    what: str,  # choose, train or test
    out: Path = Path("best"),  # folder of the trained weights
):
    "Choose, train or test."
    if what not in steps:
        sys.exit(f"best: {what!r} is none of {', '.join(steps)}")
    out.mkdir(parents=True, exist_ok=True)
    steps[what](out)
