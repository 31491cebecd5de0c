"""What the scripts of this folder share: the hand-written loop, rounds, ratios, tables, and README.md."""

import json
import os
import platform
import random
import struct
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context, set_start_method
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import optim
from tqdm import tqdm

from slowconv.convs import def_device

here = Path(__file__).parent
bs, lr = 256, 0.1  # of the lesson's run
most_load = 0.7  # load average of a machine at rest


def positive(text):
    "For argparse, which names the argument and the value: a whole number from 1 on."
    if int(text) < 1:
        raise ValueError
    return int(text)


class ByIndex:
    "Batches of images and labels that lie in memory, one index away each."

    def __init__(self, x, y, shuffle=False):
        self.x, self.y, self.shuffle = x.to(def_device), y.to(def_device), shuffle

    def __iter__(self):
        n = len(self.x)
        for i in (torch.randperm(n) if self.shuffle else torch.arange(n)).split(bs):
            # channels last in memory is faster, and slowconv's batches lie like that
            yield self.x[i, ..., None].permute(0, 3, 1, 2).float() / 255, self.y[i]


def by_hand(model, train, valid):  # (mean validation loss, accuracy)
    "An epoch as one would write it without a library: the yardstick."
    opt = optim.SGD(model.parameters(), lr=lr)
    model.train()
    for xb, yb in train:
        F.cross_entropy(model(xb), yb).backward()
        opt.step()
        opt.zero_grad()
    return validate(model, valid)


def validate(model, valid, gather=lambda pair: pair):  # (mean loss, accuracy)
    model.eval()
    loss, right, n = 0, 0, 0
    with torch.no_grad():
        for xb, yb in valid:
            pred, yb = gather((model(xb), yb))
            loss += F.cross_entropy(pred, yb) * len(yb)
            right += (pred.argmax(1) == yb).sum()
            n += len(yb)
    return float(loss) / n, float(right) / n


def wait_for_rest(
    save,  # are the tables to be kept? Then SystemExit if the machine stays busy for five minutes
):  # load average
    "Measure on a machine at rest: two threads that share a core with others are several times slower."
    for _ in range(60):
        load = os.getloadavg()[0]
        if load <= most_load:
            return load
        if not save:
            print(f"load average {load:.1f}: good for a look, not for figures", file=sys.stderr)
            return load
        print(f"load average {load:.1f}: waiting for {most_load}", file=sys.stderr)
        time.sleep(5)
    sys.exit(f"load average {load:.1f} > {most_load}: not measured; without --save it goes on")


def read_runs(path):  # list of dicts
    "The runs in a file, a line of JSON each; none if there's no such file."
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_run(path, run):
    with path.open("a") as file:
        file.write(json.dumps(run) + "\n")


def machine(*packages, load=None):  # one sentence
    "What the figures were measured on."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", *packages))
    busy = "" if load is None else f"; load average {load:.1f} before the run"
    return (
        f"{os.cpu_count()} cores ({cpu}), {torch.get_num_threads()} threads{gpu}; "
        f"Python {platform.python_version()}, {versions}{busy}."
    )


def interleave(
    runs,  # dict from name to a function
    rounds,  # how often to call each
    limit=float("inf"),  # seconds; a run that has taken longer sits out the rounds that are left
):  # (dict from name to seconds of each call, dict from name to what it returned last)
    "Call all once per round, in random order. One more round comes first, to warm up; it doesn't count."
    rng, seconds, results = random.Random(0), {name: [] for name in runs}, {}
    with tqdm(total=(rounds + 1) * len(runs), dynamic_ncols=True) as bar:
        for i in range(rounds + 1):
            for name in rng.sample(list(runs), len(runs)):
                bar.set_postfix_str(name)
                if sum(seconds[name]) < limit:
                    begin = time.perf_counter()
                    results[name] = runs[name]()
                    seconds[name] += [time.perf_counter() - begin] if i else []
                bar.update()
    return seconds, results


def compare(seconds, base):  # rows: name, median seconds, median ratio, quartiles of the ratio
    "Ratios to `base`, each taken within a round."
    rows = []
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds[base], strict=False)]
        low, mid, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        rows.append((name, np.median(taken), mid, f"{low:.2f} to {high:.2f}"))
    return rows


def table(heads, rows):  # markdown
    "Figures with two digits; a column is aligned as its first cell."
    rows = [[c if isinstance(c, str) else f"{c:.2f}" for c in row] for row in rows]
    rules = ["---:" if c[:1].isdigit() else "---" for c in rows[0]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows))


def report(name, parts, save):
    "Print a script's part of README.md, and put it there if asked to."
    text = "\n\n".join(parts)
    print(text)
    if save:
        page, (begin, end) = here / "README.md", (f"<!-- {name} -->", f"<!-- end of {name} -->")
        before, rest = page.read_text(encoding="utf-8").split(begin)
        after = rest.split(end)[1]
        page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def recorded(step):  # a function that does the same
    "On a GPU, `step` as a CUDA graph; three steps come first, in which cuDNN chooses its ways."
    if def_device != "cuda":
        return step
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def in_new_process(f, *args):  # what `f` returns
    "Run `f` in a fresh Python."
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=fork_again) as pool:
        return pool.submit(f, *args).result()


def fork_again():
    "A spawned process would spawn the workers of its DataLoaders, too; they start as they always do."
    set_start_method(None, force=True)


def write_idx(
    folder,  # below it, FashionMNIST/raw is made, where torchvision looks
    splits,  # of training and test: (images uint8 [N,28,28], labels [N])
):
    raw = Path(folder) / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, (x, y) in zip(("train", "t10k"), splits, strict=True):
        for kind, a in (("images-idx3", x), ("labels-idx1", y.byte())):
            header = struct.pack(f">HBB{a.ndim}I", 0, 8, a.ndim, *a.shape)
            (raw / f"{stem}-{kind}-ubyte").write_bytes(header + a.numpy().tobytes())
