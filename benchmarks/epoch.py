"""One epoch of the lesson's CNN, fed in five ways, side by side; then opening, memory and import.

    python benchmarks/epoch.py             # 15 rounds: some ten minutes on two cores
    python benchmarks/epoch.py --rounds 1  # a quick look
    python benchmarks/epoch.py --save      # and its tables go into benchmarks/README.md

Only the ratios carry over to another machine. Exits with an error if `fit` does not come
to the loss of the hand-written loop over the same batches.
"""

import io
import subprocess
import sys
import tempfile
from functools import partial
from statistics import median

import common
import datasets
import torch
import torch.nn.functional as F
from common import bs, lr
from fastcore.script import call_parse
from PIL import Image
from torch import optim
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor
from tqdm import tqdm

from slowconv.convs import get_model
from slowconv.data import fashion_collate, fashion_mnist, load_images
from slowconv.training import fit

limit = 60  # seconds; a way that has taken longer sits out the rounds that are left
hand = "hand-written loop over the tensors"


# The ways to feed it


def loaders(dss, **kwargs):  # two DataLoaders, the first of them shuffled
    return [DataLoader(ds, bs, shuffle=ds is dss[0], **kwargs) for ds in dss]


def tensor_loaders(splits):
    return loaders([TensorDataset(x[:, None].float() / 255, y) for x, y in splits])


def torchvision_loaders(splits):
    with tempfile.TemporaryDirectory() as root:
        common.write_idx(root, splits)
        return loaders([FashionMNIST(root, train, transform=ToTensor()) for train in (True, False)])


def dataset_loaders(splits):
    "PNGs in memory, as the hub's data set has them."
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(10))
    dss = []
    for x, y in splits:
        images = [{"bytes": png(a), "path": None} for a in tqdm(x.numpy(), "PNGs", leave=False)]
        columns = {"image": images, "label": y.tolist()}
        dss.append(datasets.Dataset.from_dict(columns, features).with_format("torch"))
    return loaders(dss, collate_fn=fashion_collate)


def png(a):
    file = io.BytesIO()
    Image.fromarray(a).save(file, "png")
    return file.getvalue()


# An epoch


def start():
    "The same weights, and the same random numbers from here on, every time."
    torch.manual_seed(42)
    return get_model()


def by_hand(train, valid):
    return common.by_hand(start(), train, valid)


def by_fit(train, valid, bar=False):
    model = start()
    opt = optim.SGD(model.parameters(), lr=lr)
    return fit(1, model, F.cross_entropy, opt, train, valid, bar, log=lambda line: None)


# The rest, each in a process of its own


open_code = """
from time import perf_counter as now
from slowconv.data import fashion_mnist
seconds = []
for _ in range(2):
    begin = now()
    fashion_mnist()
    seconds.append(now() - begin)
print(*seconds)
"""

import_code = "from time import perf_counter as now; begin = now(); {}; print(now() - begin)"
imports = ("import torch", "import slowconv", "from slowconv import fit, fashion_mnist")

memory_code = f"""
import torch
def peak():  # bytes, of this process alone
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
before = peak()
from slowconv import fashion_mnist, fit, get_model
model = get_model()
opt = torch.optim.SGD(model.parameters(), lr={lr})
fit(6, model, torch.nn.functional.cross_entropy, opt, *fashion_mnist({bs}))
print((peak() - before) / 1e9)
"""


def child(code):  # the numbers in the last line that it prints
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"epoch: this failed:\n{code}\n{done.stderr}")
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def measure_rest(rounds):  # rows: what, figure
    opened, imported = [], []
    for _ in tqdm(range(rounds), "opening, import"):
        opened.append(child(open_code))
        imported.append([child(import_code.format(code))[0] for code in imports])
    first, second = (median(column) for column in zip(*opened, strict=True))
    bare, full = (median(s[i] / s[0] for s in imported) for i in (1, 2))
    rows = [
        ("open the data, first time in a process, s", first),
        ("open it a second time, s", second),
        (f"`{imports[0]}`, s", median(s[0] for s in imported)),
        (f"`{imports[1]}`, in units of `{imports[0]}`", bare),
        (f"`{imports[2]}`, in the same units", full),
    ]
    if sys.platform == "linux":
        rows.append(("peak memory of six epochs, above `import torch`, GB", child(memory_code)[0]))
    return rows


@call_parse
def main(
    rounds: common.positive = 15,  # how often to measure each
    save: bool = False,  # put the tables into benchmarks/README.md
):
    "Measure an epoch by several ways, then opening, memory and import."
    load = common.wait_for_rest(save)
    rest = measure_rest(rounds)
    splits = [load_images("fashion_mnist", split) for split in ("train", "test")]
    dls = fashion_mnist(bs)
    tensors = [common.ByIndex(*splits[0], shuffle=True), common.ByIndex(*splits[1])]
    batches = list(dls.train)
    losses = by_hand(batches, tensors[1])[0], by_fit(batches, dls.valid)[0]
    if abs(losses[0] - losses[1]) > 1e-5:
        sys.exit(f"epoch: over the same batches, losses by hand and by fit: {losses}")
    torchvision = "`fit` on torchvision's data set, `ToTensor` for each image"
    pngs = '`fit` on `with_format("torch")`, each PNG decoded each time'
    runs = {
        hand: partial(by_hand, *tensors),
        "hand-written loop, again": partial(by_hand, *tensors),
        "`fit` on `fashion_mnist()`": partial(by_fit, *dls),
        "`fit` on `fashion_mnist()`, progress bar on": partial(by_fit, *dls, bar=True),
        "`fit` on TensorDataset": partial(by_fit, *tensor_loaders(splits)),
        torchvision: partial(by_fit, *torchvision_loaders(splits)),
        pngs: partial(by_fit, *dataset_loaders(splits)),
    }
    seconds, _ = common.interleave(runs, rounds, limit)
    n, n_valid = (len(labels) for _, labels in splits)
    parts = [
        common.machine("torchvision", "datasets", load=load),
        f"One epoch of training on {n:,} images and validation on {n_valid:,}, batches of {bs}, on "
        f"{common.def_device}; medians of {rounds} rounds, in random order. Who has taken {limit} seconds "
        "in all sits out the rounds that are left. Ratios to the hand-written loop, taken within a round.",
        common.table(("way", "seconds", "ratio", "quartiles"), common.compare(seconds, hand)),
        common.table(("what", "measured"), rest),
    ]
    common.report("epoch", parts, save)
