"""Lesson 04's network against dense ones: moved images, shuffled pixels, and few images or many.

    python benchmarks/cnn_mlp.py           # five seeds each: an hour on one core
    python benchmarks/cnn_mlp.py --save    # and its table goes into benchmarks/README.md

Every run takes 1,407 steps of SGD at a constant rate, on batches of 256. That's six epochs of 60,000 images,
and more epochs of fewer. In each setting, each network gets the rate that was best for it on 5,000 training
images kept apart. If that's the highest or the lowest rate, further ones are tried. To an MLP, shuffled
pixels are the same task, so there it keeps its rate, and its runs on both are ten of one kind. Each result is
a line in benchmarks/cnn_mlp.jsonl; what is there already is not run again.
"""

from pathlib import Path
from statistics import mean, median

import common
import torch
import torch.nn.functional as F
from common import bs
from fastcore.script import call_parse
from torch import nn, optim
from torch.utils.data import DataLoader, RandomSampler
from tqdm.auto import tqdm

from slowconv.convs import get_model, init_weights
from slowconv.data import ColumnDataset, fashion_collate, load_images
from slowconv.fast import FastNet
from slowconv.training import fit

rates = 0.02, 0.05, 0.1, 0.2, 0.4
sizes = 60_000, 20_000, 10_000, 5000, 2000, 1000, 500
settings = [("in place", n) for n in sizes] + [("shuffled", sizes[0]), ("moved", sizes[0])]
seen = 6 * 60_000  # images that a run trains on, one after the other
most = 4  # pixels by which an image is moved


def dense(hidden):
    layers = nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10)
    return nn.Sequential(*layers).apply(init_weights)


networks = {  # 5,274, 5,575 and 39,760 parameters
    "CNN": lambda: FastNet(get_model().cpu()),  # lesson 10's: the same outputs, sooner
    "MLP, 7 hidden": lambda: dense(7),
    "MLP, 50 hidden": lambda: dense(50),
}
order = torch.randperm(784, generator=torch.Generator().manual_seed(0))  # the same one for all


def shuffle_pixels(images):
    "All pixels of each image in another order, the same for all images"
    return images.flatten(1)[:, order].reshape(images.shape)


def move(images, right, down):
    "[N,H,W] moved by `right` and `down` pixels, a number each for all or [N]; zeros come in"
    n, side = images.shape[:2]
    wide, to = F.pad(images, (most,) * 4), torch.arange(most, most + side)
    right, down = (torch.as_tensor(v).expand(n)[:, None] for v in (right, down))
    return wide[torch.arange(n)[:, None, None], (to - down)[:, :, None], (to - right)[:, None]]


def collate_moved(examples):
    "A batch, each image moved by its own choice"
    xb, yb = fashion_collate(examples)
    return move(xb[:, 0], *torch.randint(-most, most + 1, (2, len(yb))))[:, None], yb


def loader(images, labels, n=None, collate_fn=fashion_collate):
    "Batches in order, or `n` images in random order, all of them before any comes again"
    ds = ColumnDataset({"image": images, "label": labels})
    return DataLoader(
        ds, bs, sampler=RandomSampler(ds, num_samples=n) if n else None, collate_fn=collate_fn
    )


def run(name, setting, lr, seed, train, *tests):
    "Accuracy on each of `tests`, after a run on `train`."
    torch.manual_seed(seed)
    model = networks[name]()
    opt = optim.SGD(model.parameters(), lr)
    collate_fn = collate_moved if setting == "moved" else fashion_collate
    train, tests = loader(*train, seen, collate_fn), [loader(*t) for t in tests]
    try:
        fit(1, model, F.cross_entropy, opt, train, tests[0], log=lambda line: None)
    except FloatingPointError:  # this rate was too high
        return [0.1] * len(tests)
    return [fit(0, model, F.cross_entropy, opt, t, t).accuracy for t in tests]


def part(images, labels, n, seed):
    "`n` of the images, other ones for each seed"
    at = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]
    return images[at], labels[at]


def measure(name, setting, n, seeds, lr=None):  # a line of the file
    "Without `lr`, choose it on images kept apart; then train anew on `n` images, and test."
    (x, y), (xt, yt) = (load_images("fashion_mnist", split) for split in ("train", "test"))
    if setting == "shuffled":
        x, xt = shuffle_pixels(x), shuffle_pixels(xt)
    torch.manual_seed(0)
    apart, rest = torch.randperm(len(x)).split([5000, len(x) - 5000])
    xv, yv = x[apart], y[apart]
    if setting == "moved":
        xv = move(xv, *torch.randint(-most, most + 1, (2, len(xv))))
    chosen, untried = {}, [] if lr else list(rates)
    while untried:
        for lr in untried:
            trains = {seed: part(x[rest], y[rest], n, seed) for seed in range(100, 100 + seeds)}
            chosen[lr] = mean(run(name, setting, lr, s, t, (xv, yv))[0] for s, t in trains.items())
        lr = max(chosen, key=chosen.get)
        untried = {max(chosen): [2 * lr], min(chosen): [lr / 2]}.get(lr)
    tests = [(xt, yt)]
    if n == sizes[0] and setting != "shuffled":
        for k in range(1, most + 1):
            tests += [(move(xt, *side), yt) for side in ((k, 0), (-k, 0), (0, k), (0, -k))]
    found = [run(name, setting, lr, s, part(x, y, n, s), *tests) for s in range(seeds)]
    row = {"network": name, "setting": setting, "images": n, "lr": lr}
    row["rates"] = {str(lr): round(a, 4) for lr, a in chosen.items()}
    row["accuracy"] = [round(f[0], 4) for f in found]
    if len(tests) > 1:  # for each seed, on images moved by 0 to 4 pixels: the mean over four sides
        by_k = [[f[0], *(mean(f[i : i + 4]) for i in range(1, len(f), 4))] for f in found]
        row["by pixels"] = [[round(a, 4) for a in f] for f in by_k]
    return row


def cell(rows, *job):  # of the table
    "Median, range and learning rate of one network in one setting."
    row = next(r for r in rows if (r["network"], r["setting"], r["images"]) == job)
    accs = row["accuracy"]
    return f"{median(accs):.3f} ({min(accs):.3f} to {max(accs):.3f}), {row['lr']}"


def by_pixels(rows):  # of the second table
    for r in rows:
        if "by pixels" in r:
            medians = [f"{median(v):.3f}" for v in zip(*r["by pixels"], strict=True)]
            yield r["setting"], r["network"], *medians


@call_parse
def main(
    seeds: common.positive = 5,  # runs of each network in each setting, and as many to choose the rate
    out: str = "",  # where the results go; beside this script without it
    save: bool = False,  # put the table into benchmarks/README.md
):
    "Run what has not been run."
    torch.set_num_threads(1)
    path = Path(out) if out else Path(__file__).with_suffix(".jsonl")
    rows = common.read_runs(path)
    done = {(r["network"], r["setting"], r["images"]) for r in rows}
    jobs = [(name, *s) for s in settings[:1] + settings[::-1] for name in networks]
    for job in tqdm([j for j in dict.fromkeys(jobs) if j not in done]):
        lrs = {(r["network"], r["setting"], r["images"]): r["lr"] for r in rows}
        keep = job[1] == "shuffled" and job[0] != "CNN"
        rows.append(measure(*job, seeds, lrs[job[0], *settings[0]] if keep else None))
        common.add_run(path, rows[-1])
    heads = "setting", "training images", *(f"{name}, lr" for name in networks)
    cells = [(s, f"{n:,}", *(cell(rows, name, s, n) for name in networks)) for s, n in settings]
    parts = [
        f"{seeds} seeds each: median (range) of the accuracy on the test images, and the learning rate.",
        common.table(heads, cells),
        "Medians on test images moved by 0 to 4 pixels, each the mean of four sides:",
        common.table(("trained", "network", *"01234"), by_pixels(rows)),
    ]
    common.report("cnn_mlp", parts, save)
