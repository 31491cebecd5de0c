"""One epoch of the lesson's CNN, fed in five ways, side by side; then opening and import.

    python benchmarks/epoch.py             # five rounds, some four minutes on two cores
    python benchmarks/epoch.py --rounds 1  # a quick look

Prints two tables, and writes them to benchmarks/epoch.md. Only the ratios carry over to another machine.
Needs a machine at rest: two threads with one free core are several times slower.
"""

import io
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import datasets
import torch
import torch.nn.functional as F
import torchvision
from fastcore.script import call_parse
from PIL import Image
from torch import optim
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import ToTensor
from tqdm.auto import tqdm

from slowconv.convs import def_device, get_model
from slowconv.data import fashion_collate, fashion_mnist, find_source, load_images
from slowconv.training import fit

titles = {
    "hand": "hand-written loop over the tensors",
    "fit": "`fit` on `fashion_mnist()`",
    "tensors": "`fit` on TensorDataset and DataLoader",
    "torchvision": "`fit` on torchvision's data set, ToTensor and DataLoader",
    "datasets": '`fit` on `with_format("torch")`, each PNG decoded each time',
}
bs, lr = 256, 0.1


def machine():  # one line of text
    "What the figures were measured on."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{os.cpu_count()} cores ({cpu}), {torch.get_num_threads()} threads, device {def_device}; "
        f"Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, datasets {datasets.__version__}"
    )


# The ways


def by_hand(
    model,
    opt,
    splits,  # to train and to validate on: images uint8 [N,28,28], labels [N]
    order=None,  # of the training images; a new random one without it
):  # (mean validation loss, accuracy)
    "An epoch as one would write it without a library: the yardstick."

    def batch(x, y, idxs):
        xb = x[idxs, ..., None].permute(0, 3, 1, 2)  # channels last, as `fashion_collate` has them
        return xb.to(def_device).float() / 255, y[idxs].to(def_device)

    train, valid = splits
    model.train()
    order = torch.randperm(len(train[0])) if order is None else order
    for idxs in order.split(bs):
        xb, yb = batch(*train, idxs)
        F.cross_entropy(model(xb), yb).backward()
        opt.step()
        opt.zero_grad()
    model.eval()
    loss, right, n = 0, 0, len(valid[0])
    with torch.no_grad():
        for i in range(0, n, bs):
            xb, yb = batch(*valid, slice(i, i + bs))
            pred = model(xb)
            loss += F.cross_entropy(pred, yb, reduction="sum")
            right += (pred.argmax(1) == yb).sum()
    return float(loss) / n, float(right) / n


def by_fit(model, opt, dls):  # (mean validation loss, accuracy)
    "The same epoch by slowconv, its line not printed."
    return fit(1, model, F.cross_entropy, opt, *dls, log=lambda line: None)


def loaders(dss, **kwargs):  # two DataLoaders, the first of them shuffled
    return [DataLoader(ds, bs, shuffle=ds is dss[0], **kwargs) for ds in dss]


def tensor_loaders(splits):
    return loaders([TensorDataset(x[:, None].float() / 255, y) for x, y in splits])


def torchvision_loaders(splits):
    "torchvision reads IDX files: write them where it looks for them."
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for stem, (x, y) in zip(("train", "t10k"), splits, strict=True):
            for kind, a in ((f"images-idx{x.ndim}", x), (f"labels-idx{y.ndim}", y.byte())):
                header = struct.pack(f">HBB{a.ndim}I", 0, 8, a.ndim, *a.shape)
                (raw / f"{stem}-{kind}-ubyte").write_bytes(header + a.numpy().tobytes())
        make = torchvision.datasets.FashionMNIST
        return loaders([make(root, train, transform=ToTensor()) for train in (True, False)])


def dataset_loaders(splits):
    "PNGs in memory, as the hub's data set has them."
    feats = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(10))
    columns = [
        {"image": [png(a) for a in tqdm(x.numpy(), "PNGs", leave=False)], "label": y.tolist()}
        for x, y in splits
    ]
    dss = [datasets.Dataset.from_dict(c, feats).with_format("torch") for c in columns]
    return loaders(dss, collate_fn=fashion_collate)


def png(a):
    file = io.BytesIO()
    Image.fromarray(a).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


loader_makers = {
    "tensors": tensor_loaders,
    "torchvision": torchvision_loaders,
    "datasets": dataset_loaders,
}


# What is measured


def start():  # model, optimizer
    "The same weights, and the same random numbers from here on, every time."
    torch.manual_seed(42)
    model = get_model()
    return model, optim.SGD(model.parameters(), lr=lr)


def check_same(splits, dls):
    "By hand and by `fit`, the same batches must lead to the same validation loss."
    order, train = torch.randperm(len(splits[0][0])), dls.train
    train = DataLoader(train.dataset, bs, sampler=order.tolist(), collate_fn=train.collate_fn)
    hand, _ = by_hand(*start(), splits, order)
    loss, _ = by_fit(*start(), (train, dls.valid))
    assert abs(hand - loss) < 1e-5, f"validation loss {hand} by hand, {loss} by fit"


def measure_epochs(splits, dls, names, rounds):  # way -> seconds, one per round
    made = {name: make(splits) for name, make in loader_makers.items()}
    feeds = {"hand": splits, "fit": dls, **made}
    seconds, losses = {name: [] for name in names}, {}
    with tqdm(total=rounds * len(names), desc="epochs") as bar:
        for i in range(rounds):
            first = i % len(names)  # another way goes first in each round
            for name in names[first:] + names[:first]:
                bar.set_postfix_str(name)
                model, opt = start()
                run = by_hand if name == "hand" else by_fit
                begin = time.perf_counter()
                losses[name], _ = run(model, opt, feeds[name])
                seconds[name].append(time.perf_counter() - begin)
                bar.update()
    # these shuffle alike from the same seed, and their batches lie alike in memory
    same = [loss for name, loss in losses.items() if name not in ("hand", "fit")]
    assert not same or max(same) - min(same) < 1e-5, f"unlike validation losses: {losses}"
    return seconds


def child(code):  # the numbers in the last line that it prints
    "Run `code` in a Python of its own."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{code}\n{done.stderr}")
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


open_code = """
from time import perf_counter
from slowconv.data import fashion_mnist
seconds = []
for _ in range(2):
    begin = perf_counter()
    with fashion_mnist() as dls:
        seconds.append(perf_counter() - begin)
print(*seconds)
"""

import_code = """
from time import perf_counter
begin = perf_counter()
{}
print(perf_counter() - begin)
"""


def measure_rest(source, rounds):  # rows: what, figure, limit
    imports = ["import torch", "import slowconv", "from slowconv import fit, fashion_mnist"]
    steps = tqdm(total=rounds * (1 + len(imports)), desc="opening, import")

    def step(code):
        numbers = child(code)
        steps.update()
        return numbers

    with steps:
        opened, seconds = [], []
        for _ in range(rounds):
            opened.append(step(open_code))
            seconds.append([step(import_code.format(code))[0] for code in imports])
    first, second = (median(column) for column in zip(*opened, strict=True))
    bare, full = (median(s[i] / s[0] for s in seconds) for i in (1, 2))
    unit = f"in units of `import torch` ({median(s[0] for s in seconds):.2f} s)"
    return [
        (f"open the data ({source}), first time in a process", first, " s", 1.5),
        ("open it a second time", second, " s", 0.5),
        (f"`{imports[1]}`, {unit}", bare, "", 1.1),
        (f"`{imports[2]}`, in the same units", full, "", 1.1),
    ]


def report(seconds, rest, sizes, busy):  # markdown
    ratios = {
        name: [s / hand for s, hand in zip(secs, seconds["hand"], strict=True)]
        for name, secs in seconds.items()
    }
    what = "epoch by `fit`, in units of the hand-written loop"
    rest = [(what, median(ratios["fit"]), "", 1.05), *rest]
    lines = [f"{machine()}; {busy}.", ""]
    lines += [
        f"One epoch of training on {sizes[0]:,} images and validation on {sizes[1]:,}, batches of {bs}; "
        f"medians of {len(seconds['hand'])} interleaved rounds:",
        "",
        "| way | seconds | ratio to the hand-written loop | least and greatest ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, r in ratios.items():
        cells = f"{median(seconds[name]):.2f} | {median(r):.2f} | {min(r):.2f} to {max(r):.2f}"
        lines.append(f"| {titles[name]} | {cells} |")
    lines += ["", "| what | measured | limit | kept |", "| --- | ---: | ---: | --- |"]
    for what, value, unit, limit in rest:
        kept = "yes" if value <= limit else "no"
        lines.append(f"| {what} | {value:.2f}{unit} | {limit:.2f}{unit} | {kept} |")
    return "\n".join(lines) + "\n"


@call_parse
def main(
    rounds: int = 5,  # how often to measure each
):
    "Measure an epoch by several ways, then opening and import."
    if rounds < 1:
        sys.exit(f"epoch: --rounds {rounds}: expected 1 or more")
    source = find_source("fashion_mnist")
    busy = f"load average {os.getloadavg()[0]:.1f} before the run"
    rest = measure_rest(source, rounds)
    splits = [load_images("fashion_mnist", split, source) for split in ("train", "test")]
    dls = fashion_mnist(bs, source=source)
    check_same(splits, dls)
    seconds = measure_epochs(splits, dls, list(titles), rounds)
    text = report(seconds, rest, [len(images) for images, _ in splits], busy)
    print(text, end="")
    (Path(__file__).parent / "epoch.md").write_text(text, encoding="utf-8")
