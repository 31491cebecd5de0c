"""Ten million images that are nowhere: made as they are wanted, streamed through `fit`, and forgotten.

    python benchmarks/stream.py                     # some 13 minutes on two cores
    python benchmarks/stream.py --images 200_000    # a quick look, without a file

Trains the lesson's CNN for one epoch on a stream of `datasets`, shuffled by its buffer, and looks at the
memory that the process has meanwhile. Each image carries its number in its first four pixels: none may
come twice, and none be missing. Beside it, the same `fit` on 60,000 such images held in memory. Writes
benchmarks/stream.md. Needs Linux for the memory.
"""

import os
import platform
import sys
import time
from pathlib import Path
from statistics import median

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import optim

from slowconv.convs import get_model
from slowconv.data import fashion_collate, get_dls_from_dataset_dict
from slowconv.loaders import get_loaders
from slowconv.training import fit

names = "image", "label"
chunk = 10_000  # images that are made at once: a "file" of the stream


def make(n, seed=0):  # images uint8 [n,28,28] and labels int64 [n]
    "A bright square on noise; the label says where. Numbers go from `seed * chunk` on."
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 64, (n, 28, 28), np.uint8), rng.integers(0, 10, n)
    for label in range(10):
        row, col = 6 * (label // 5) + 8, 5 * (label % 5) + 1
        images[labels == label, row : row + 5, col : col + 4] += 128
    images[:, 0, :4] = (seed * chunk + np.arange(n, dtype="<u4")).view(np.uint8).reshape(n, 4)
    return images, labels


def examples(seeds, n):
    "What the stream gives, one by one."
    for seed in seeds:
        for image, label in zip(*make(min(chunk, n - seed * chunk), seed), strict=True):
            yield {"image": image, "label": label}


def stream(n, first=0):
    "Images up to number n, without the `first` chunks of them."
    seeds = list(range(first, -(-n // chunk)))
    return datasets.IterableDataset.from_generator(examples, gen_kwargs={"seeds": seeds, "n": n})


def resident():  # megabytes
    "Memory of this process, without files that are mapped."
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1e3


class Watch:
    "Counts each image as it enters the model, and looks at the memory now and then."

    def __init__(self, model, n, rows=10):
        self.seen, self.n, self.done, self.found = np.zeros(n, np.uint8), n, 0, []
        self.every, self.begin = n / rows, time.perf_counter()
        model.register_forward_pre_hook(self.look)

    def look(self, model, inputs):
        if not model.training:
            return
        numbers = (inputs[0][:, 0, 0, :4] * 255).round().byte().numpy().copy().view("<u4")
        np.add.at(self.seen, numbers[:, 0], 1)
        self.done += len(numbers)
        if self.done >= self.every * (len(self.found) + 1):
            self.found.append((self.done, time.perf_counter() - self.begin, resident()))


def train(dls, n):
    "One epoch; (`FitResult`, `Watch`)."
    torch.manual_seed(42)
    model = get_model().cpu()
    watch = Watch(model, n)
    opt = optim.SGD(model.parameters(), lr=0.02)
    return fit(1, model, F.cross_entropy, opt, *dls, sys.stderr.isatty()), watch


@call_parse
def main(
    images: int = 10_000_000,  # how many are streamed
):
    "Stream them."
    if images < chunk:
        sys.exit(f"stream: --images {images}: expected {chunk} at least")
    valid = dict(zip(names, map(torch.from_numpy, make(chunk, images // chunk + 1)), strict=True))
    few = 6 * chunk
    parts = [make(chunk, seed) for seed in range(6)]
    held = {k: torch.from_numpy(np.concatenate([p[i] for p in parts])) for i, k in enumerate(names)}
    rates = []
    for _ in range(5):
        with_memory, _ = train(get_loaders(held, valid, fashion_collate, 256, whole=True), few)
        rates.append(few / with_memory.history[0]["seconds"])
    del held, parts
    after = -(-images // chunk)  # the first chunk that is not trained on
    dsd = {"train": stream(images), "test": stream((after + 1) * chunk, after)}
    with get_dls_from_dataset_dict(dsd, fashion_collate, 256) as dls:
        result, watch = train(dls, images)
    assert (watch.seen == 1).all(), f"{(watch.seen != 1).sum()} images came twice, or not at all"
    seconds = result.history[0]["seconds"]
    lines = [
        f"{os.cpu_count()} x86-64 cores, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}, datasets {datasets.__version__}.",
        "",
        f"`fit` on {images:,} generated images, streamed: each came once. {images / seconds:,.0f} images a "
        f"second, with all that is needed to make them; from memory, 60,000 of them, {median(rates):,.0f} "
        f"(median of {len(rates)} epochs). {images * 784 / 1e9:.2f} GB went by.",
        "",
        "| images so far | seconds | memory, MB |",
        "| ---: | ---: | ---: |",
        *(f"| {done:,} | {at:.0f} | {mb:.0f} |" for done, at, mb in watch.found),
    ]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if images >= 10_000_000:
        (Path(__file__).parent / "stream.md").write_text(text, encoding="utf-8")
