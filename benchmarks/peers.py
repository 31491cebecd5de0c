"""The lesson's CNN through slowconv's `fit` and through other trainers, side by side on the CPU.

    python benchmarks/peers.py                                   # five rounds, some 35 minutes
    python benchmarks/peers.py --rounds 1 --images 6000 --out x  # a quick look, written elsewhere
    python benchmarks/peers.py --peers hand,fit,fit_bar --out x  # some of them

Needs the extra `peers` of settings.ini; `make bench` makes an environment for it in benchmarks/.peers.
Prints its tables, and writes benchmarks/peers.json and, made of it, peers.md.
Exits with an error if an engine made of torch takes other steps than the hand-written loop.

Each measurement has a process of its own, on two CPUs with a thread for each, so that no trainer changes
another's settings; round after round, and another trainer goes first each time. In it the peer is imported,
runs once over very few images, so that everything is compiled and warm, and then for whole epochs, each from
the same start, first over ready-made batches (engine only), then over the data as its documentation says.
Needs Linux, and a machine at rest: two threads with one free core are several times slower.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import median

# Nothing else is imported up here: a peer's import is measured, and would find its own imports done.

here = Path(__file__).parent
bs, lr, threads = 256, 0.1, 2
least_seconds = 5  # an epoch is repeated until it has taken as long, and its median counts
same = 1e-5  # what losses may differ by where torch computes them
in_turn = {  # images, turns, and who takes them: those that come near to the hand-written loop
    "engine": (10_240, 99, ["hand", "again", "fit", "fit_bar", "tutorial", "accelerate", "skorch"]),
    # all images, as what Keras does once per epoch would weigh too much in a short one
    "documented": (60_000, 33, ["hand", "again", "fit", "fit_bar", "keras"]),
}


# The data, as each documentation says. `folder` is what `prepare` wrote.


def in_order(n):
    "The order of the training images: the same for everyone."
    import torch

    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def shuffle_alike():
    "Whoever shuffles by torch or by numpy gets `in_order`."
    import numpy as np
    from torch.utils.data import RandomSampler

    RandomSampler.__iter__ = lambda self: iter(in_order(len(self.data_source)).tolist())
    np.random.permutation = lambda n: in_order(n).numpy()


def ready_batches(folder):
    "Two lists of batches (xb float32 [N,1,28,28] in [0,1], yb int64 [N]), the first of them in order."
    import torch

    class Batches(list):
        "Lightning would take a plain list for several loaders."

    def batches(x, y):
        return Batches(zip((x[:, None].float() / 255).split(bs), y.split(bs), strict=True))

    (x, y), valid = torch.load(folder / "images.pt")
    order = in_order(len(x))
    return batches(x[order], y[order]), batches(*valid)


def by_index(folder):
    "Without a library: the images stay uint8, one index takes a batch out."
    import torch

    class Batches:
        def __init__(self, x, y, shuffle):
            self.x, self.y, self.shuffle = x, y, shuffle

        def __iter__(self):
            n = len(self.x)
            for i in (in_order(n) if self.shuffle else torch.arange(n)).split(bs):
                yield self.x[i, None].float() / 255, self.y[i]

    train, valid = torch.load(folder / "images.pt")
    return Batches(*train, True), Batches(*valid, False)


def from_slowconv(folder):
    from slowconv import fashion_mnist

    return fashion_mnist(bs, source=folder / "FashionMNIST" / "raw")


def from_torchvision(folder):
    "docs.pytorch.org, quickstart tutorial"
    from torch.utils.data import DataLoader
    from torchvision.datasets import FashionMNIST
    from torchvision.transforms import ToTensor

    train, valid = (FashionMNIST(folder, train=t, transform=ToTensor()) for t in (True, False))
    return DataLoader(train, bs, shuffle=True), DataLoader(valid, bs)


def from_pngs(folder):
    "docs.fast.ai, vision tutorial: folders of images, decoded by worker processes"
    import torch
    from fastai.vision.all import ImageDataLoaders, PILImageBW

    def shuffle(idxs):  # fastai shuffles by itself, and finds files in no order
        at = {int(path.stem): i for i, path in enumerate(dls.train.items)}
        return [at[i] for i in in_order(len(idxs)).tolist()]

    dls = ImageDataLoaders.from_folder(
        folder / "png", train="train", valid="test", bs=bs, img_cls=PILImageBW, drop_last=False,
        shuffle_fn=shuffle, device=torch.device("cpu"),
    )  # fmt: skip
    return dls.train, dls.valid


def from_arrays(folder):
    "skorch.readthedocs.io, MNIST notebook: float32 arrays [N,1,28,28]"
    import torch

    splits = torch.load(folder / "images.pt")
    return [((x.numpy()[:, None] / 255).astype("float32"), y.numpy()) for x, y in splits]


def from_keras(folder):
    "keras.io, introduction for engineers: float32 arrays [N,28,28,1]"
    import keras
    import numpy as np

    cache = Path(os.environ["KERAS_HOME"], "datasets")  # Keras reads the variable only once
    cache.unlink(missing_ok=True)
    cache.symlink_to(folder / "datasets")
    splits = keras.datasets.fashion_mnist.load_data()
    return [(np.expand_dims(x.astype("float32") / 255, -1), y) for x, y in splits]


# The trainers: an epoch of SGD from the model's weights on, with validation, as each documentation says.
# `plain` is without bars, logs and checkpoints. Each gives (mean validation loss, accuracy).


def by_hand(model, train, valid, loss_func, plain):
    "As one would write it without a library: the yardstick."
    import torch

    opt = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    total, n = 0, 0
    for xb, yb in train:
        loss = loss_func(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
        total += loss.detach() * len(xb)
        n += len(xb)
    train_loss = float(total) / n
    model.eval()
    total, right, n = 0, 0, 0
    with torch.no_grad():
        for xb, yb in valid:
            pred = model(xb)
            total += loss_func(pred, yb) * len(xb)
            right += (pred.argmax(1) == yb).sum()
            n += len(xb)
    loss, acc = float(total) / n, float(right) / n
    print(f"training loss {train_loss:.3f}, validation loss {loss:.3f}, accuracy {acc:.2f}")
    return loss, acc


def by_fit(model, train, valid, loss_func, plain, bar=False):
    "slowconv"
    from torch import optim

    from slowconv import fit

    opt = optim.SGD(model.parameters(), lr=lr)
    return fit(1, model, loss_func, opt, train, valid, bar)


def by_fit_with_bar(*args):
    return by_fit(*args, bar=True)


def by_tutorial(model, train, valid, loss_func, plain):
    "docs.pytorch.org, quickstart tutorial: a line for every hundredth batch, sums by `item`"
    import torch

    opt = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    for i, (xb, yb) in enumerate(train):
        loss = loss_func(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
        if i % 100 == 0:
            print(f"loss {loss.item():.4f}, batch {i}")
    model.eval()
    total, right, n = 0, 0, 0
    with torch.no_grad():
        for xb, yb in valid:
            pred = model(xb)
            # weighted, where the tutorial takes the mean over batches
            total += loss_func(pred, yb).item() * len(xb)
            right += (pred.argmax(1) == yb).float().sum().item()
            n += len(xb)
    return total / n, right / n


def by_accelerate(model, train, valid, loss_func, plain):
    "huggingface.co/docs/accelerate, quicktour"
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator()
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    model, opt, train, valid = accelerator.prepare(model, opt, train, valid)
    model.train()
    for xb, yb in train:
        opt.zero_grad()
        loss = loss_func(model(xb), yb)
        accelerator.backward(loss)
        opt.step()
    model.eval()
    total, right, n = 0, 0, 0
    with torch.no_grad():
        for xb, yb in valid:
            pred, yb = accelerator.gather_for_metrics((model(xb), yb))
            total += loss_func(pred, yb) * len(yb)
            right += (pred.argmax(1) == yb).sum()
            n += len(yb)
    return float(total) / n, float(right) / n


def by_lightning(model, train, valid, loss_func, plain):
    "lightning.ai/docs, Lightning in 15 minutes"
    import lightning as L
    from torch import optim

    class Lesson(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, batch_idx):
            xb, yb = batch
            loss = loss_func(self.model(xb), yb)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            xb, yb = batch
            pred = self.model(xb)
            self.log("val_loss", loss_func(pred, yb))
            self.log("val_acc", (pred.argmax(1) == yb).float().mean())

        def configure_optimizers(self):
            return optim.SGD(self.parameters(), lr=lr)

    bare = {
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "logger": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = L.Trainer(max_epochs=1, **(bare if plain else {}))
    trainer.fit(Lesson(), train, valid)
    return trainer.callback_metrics["val_loss"].item(), trainer.callback_metrics["val_acc"].item()


def by_fastai(model, train, valid, loss_func, plain):
    "docs.fast.ai, Learner"
    from contextlib import ExitStack

    from fastai.vision.all import SGD, DataLoaders, Learner, accuracy

    dls = DataLoaders(train, valid)
    learn = Learner(dls, model, loss_func=loss_func, opt_func=SGD, lr=lr, metrics=accuracy)
    with ExitStack() as stack:
        for quiet in (learn.no_bar(), learn.no_logging()) if plain else ():
            stack.enter_context(quiet)
        learn.fit(1)
    return learn.recorder.values[-1][1:]


def by_skorch(model, train, valid, loss_func, plain):
    "skorch.readthedocs.io, NeuralNetClassifier"
    from skorch import NeuralNetClassifier
    from skorch.dataset import Dataset
    from skorch.helper import predefined_split

    as_is = {
        "classes": list(range(10)),
        "dataset": lambda x, y: x,
        "iterator_train": lambda ds, **_: ds,
        "iterator_valid": lambda ds, **_: ds,
        "train_split": predefined_split(valid),
        "verbose": 0,
    }
    documented = {
        "batch_size": bs, "iterator_train__shuffle": True,
        "train_split": None if plain else predefined_split(Dataset(*valid)),
    }  # fmt: skip
    net = NeuralNetClassifier(
        model, criterion=loss_func, lr=lr, max_epochs=1, **(as_is if plain else documented)
    )
    net.fit(train, None) if plain else net.fit(*train)
    return net.history[-1, "valid_loss"], net.history[-1, "valid_acc"]


@cache  # a compiled model is kept, as everything that is compiled belongs to it
def keras_model(loss_func, channels_first):
    import keras
    from keras import layers

    def loss(y, pred):
        each = keras.losses.sparse_categorical_crossentropy(y, pred, from_logits=True)
        loss_func.remember(each)
        return each

    order = {"data_format": "channels_first" if channels_first else "channels_last"}
    model = keras.Sequential([keras.Input((1, 28, 28) if channels_first else (28, 28, 1))])
    for nf, act in ((4, "relu"), (8, "relu"), (16, "relu"), (16, "relu"), (10, None)):
        # padding="same" would put all of it on the right, where torch has it on both sides
        model.add(layers.ZeroPadding2D(1, **order))
        model.add(layers.Conv2D(nf, 3, strides=2, activation=act, **order))
    model.add(layers.Flatten())
    optimizer = keras.optimizers.SGD(learning_rate=lr)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    return model


def by_keras(model, train, valid, loss_func, plain):
    "keras.io, introduction for engineers; ready-made batches come in as a torch DataLoader"
    weights = [p.detach().numpy() for p in model.parameters()]
    net = keras_model(loss_func, plain)
    net.set_weights([w.transpose(2, 3, 1, 0) if w.ndim == 4 else w for w in weights])
    if plain:
        from torch.utils.data import DataLoader

        feeds = [DataLoader(batches, batch_size=None) for batches in (train, valid)]
        done = net.fit(feeds[0], validation_data=feeds[1], verbose=0)
    else:
        done = net.fit(*train, batch_size=bs, epochs=1, validation_data=valid)
    return done.history["val_loss"][-1], done.history["val_accuracy"][-1]


ours = "from slowconv import fashion_mnist, fit, get_model"
peers = {  # title, packages, import, trainer, data
    "hand": ("hand-written loop", "torch", "import torch", by_hand, by_index),
    "fit": ("slowconv `fit`", "slowconv", ours, by_fit, from_slowconv),
    "fit_bar": ("slowconv `fit`, progress bar on", "slowconv", ours, by_fit_with_bar, from_slowconv),
    "tutorial": ("PyTorch tutorial", "torchvision", "import torchvision", by_tutorial, from_torchvision),
    "accelerate": (
        "Accelerate", "accelerate", "import accelerate, torchvision", by_accelerate, from_torchvision
    ),
    "lightning": (
        "Lightning", "lightning", "import lightning, torchvision", by_lightning, from_torchvision
    ),
    "fastai": ("fastai", "fastai", "from fastai.vision.all import *", by_fastai, from_pngs),
    "skorch": ("skorch", "skorch", "from skorch import NeuralNetClassifier", by_skorch, from_arrays),
    "keras": ("Keras, jax backend", "keras jax", "import keras", by_keras, from_keras),
}  # fmt: skip


# In a process of its own


def prepare(folder, images):
    "Write the data set in every form that a documentation reads, and the warm-up's few images likewise."
    import gzip
    import struct

    import torch
    from PIL import Image

    from slowconv.data import load_images

    splits = [load_images("fashion_mnist", split) for split in ("train", "test")]
    full = [(x[:images], y[:images]) for x, y in splits]
    # one whole batch and one of the size of the last: a program compiled for a size is for that size
    few = [(x[: bs + len(x) % bs], y[: bs + len(y) % bs]) for x, y in full]
    for name, pair in (("full", full), ("few", few)):
        raw, home = (folder / name / d for d in ("FashionMNIST/raw", "datasets/fashion-mnist"))
        raw.mkdir(parents=True)
        home.mkdir(parents=True)
        torch.save([(x.clone(), y.clone()) for x, y in pair], folder / name / "images.pt")
        for split, stem, (x, y) in zip(("train", "test"), ("train", "t10k"), pair, strict=True):
            for kind, a in ((f"images-idx{x.ndim}", x), (f"labels-idx{y.ndim}", y.byte())):
                header = struct.pack(f">HBB{a.ndim}I", 0, 8, a.ndim, *a.shape)
                (raw / f"{stem}-{kind}-ubyte").write_bytes(header + a.numpy().tobytes())
                packed = gzip.compress(header + a.numpy().tobytes(), 1)
                (home / f"{stem}-{kind}-ubyte.gz").write_bytes(packed)
            for label in range(10):
                (folder / name / "png" / split / str(label)).mkdir(parents=True)
            for i, (a, label) in enumerate(zip(x.numpy(), y.tolist(), strict=True)):
                file = folder / name / "png" / split / str(label) / f"{i}.png"
                Image.fromarray(a).save(file)
    return [len(y) for _, y in full]


def start():
    "The model, with the same weights every time."
    import torch

    from slowconv import get_model

    torch.manual_seed(42)
    return get_model()


def remembering_loss():
    "Cross-entropy that keeps the losses of the training steps."
    import torch

    class Loss(torch.nn.CrossEntropyLoss):
        def forward(self, pred, yb):
            loss = super().forward(pred, yb)
            self.remember(loss)
            return loss

        def remember(self, loss):
            if isinstance(loss, torch.Tensor) and loss.requires_grad:
                self.losses.append(loss.detach())

    return Loss()


def measure(name, folder):
    "One peer, once: seconds to import, set up, open and run, and the losses of its steps."
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    _, packages, statement, trainer, opened = peers[name]
    begin = time.perf_counter()
    exec(statement, {})
    found = {"import": time.perf_counter() - begin}
    import torch

    torch.set_num_threads(threads)
    shuffle_alike()
    loss_func = remembering_loss()

    def timed(f, *args):
        begin = time.perf_counter()
        result = f(*args)
        return result, time.perf_counter() - begin

    for kind, feed in (("engine", ready_batches), ("documented", opened)):
        plain = kind == "engine"
        loss_func.losses, few = [], feed(folder / "few")
        _, setup = timed(trainer, start(), *few, loss_func, plain)
        (train, valid), opening = timed(feed, folder / "full")
        epochs = []
        while sum(epochs) < least_seconds:
            loss_func.losses, model = [], start()
            result, seconds = timed(trainer, model, train, valid, loss_func, plain)
            epochs.append(seconds)
        losses = [loss.mean().item() for loss in loss_func.losses]
        found[kind] = {
            "setup": setup, "open": opening, "epoch": median(epochs), "losses": losses,
            "validation": [float(v) for v in result],
        }  # fmt: skip
    if name == "hand":
        found["channels last"] = channels_last_steps(folder / "full", loss_func)
    found["versions"] = {p: metadata.version(p) for p in ("torch", *packages.split())}
    return found


def by_turns(kind, asked, folder):  # name -> seconds of each epoch
    "Epochs in one process, in a new order each turn, of those that can live in one."
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    torch.set_num_threads(threads)
    shuffle_alike()
    loss_func, (_, n, names) = remembering_loss(), in_turn[kind]
    names = [name for name in names if name == "again" or name in asked]
    whose = {name: peers["hand" if name == "again" else name] for name in names}
    feeds = {
        name: (ready_batches if kind == "engine" else peer[4])(folder / "full")
        for name, peer in whose.items()
    }
    seconds = {name: [] for name in names}
    order, rng = list(names), random.Random(0)
    for i in range(n + 1):
        rng.shuffle(order)
        for name in order:
            loss_func.losses, model = [], start()
            begin = time.perf_counter()
            whose[name][3](model, *feeds[name], loss_func, kind == "engine")
            if i:  # the first is for warming up
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def channels_last_steps(folder, loss_func):
    "What the hand-written loop comes to where batches lie in memory as slowconv's loaders make them."
    loss_func.losses, model = [], start()
    feeds = [
        [(xb[:, 0, ..., None].permute(0, 3, 1, 2), yb) for xb, yb in feed]
        for feed in ready_batches(folder)
    ]
    result = by_hand(model, *feeds, loss_func, True)
    return {"losses": [v.item() for v in loss_func.losses], "validation": result}


# Outside it


def child(*args):  # what it found
    "Run this script in the environment, without a graphics card, and with a progress bar that nobody sees."
    with tempfile.TemporaryDirectory() as cwd:
        out = Path(cwd) / "found.json"
        count = str(threads)
        env = os.environ | {
            "KERAS_HOME": f"{cwd}/keras",
            "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count,
            "KERAS_BACKEND": "jax",
        }  # fmt: skip
        command = [sys.executable, Path(__file__).resolve(), *args, "--found", out]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"peers: {' '.join(map(str, args))} failed:\n{done.stderr[-4000:]}")
        return json.loads(out.read_text())


def machine():  # dict
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu, python = names[0] if names else platform.machine(), platform.python_version()
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "python": python}


def check(name, found, hand):  # the largest difference of a step's loss
    """Did it take the steps of the hand-written loop, and come to the same? SystemExit if not.

    slowconv's loaders lay the channels last in memory: `fit` is held to the loop over such batches.
    """
    worst = 0
    for kind in ("engine", "documented"):
        last = kind == "documented" and name.startswith("fit")
        wanted = hand["channels last" if last else "engine"]
        got, title = found[kind], f"peers: {peers[name][0]}, {kind}"
        loss, by_hand = got["validation"][0], wanted["validation"][0]
        if abs(loss - by_hand) > (0.05 if name == "keras" else same):
            sys.exit(f"{title}: validation loss {loss}, by hand {by_hand}")
        if name == "keras":  # another engine, whose steps cannot be looked at
            continue
        if len(got["losses"]) != len(wanted["losses"]):
            sys.exit(f"{title}: {len(got['losses'])} steps, by hand {len(wanted['losses'])}")
        pairs = list(zip(got["losses"], wanted["losses"], strict=True))
        for i, (a, b) in enumerate(pairs):
            worst = max(worst, abs(a - b))
            if worst > same:
                sys.exit(f"{title}: the loss of step {i} is {a}, by hand {b}")
    return worst


def run(names, rounds, images):  # after each round: all results, as they are written
    seconds = {
        name: {"import": [], "engine": [], "documented": [], "setup": [], "open": []}
        for name in names
    }
    versions, worst, turns, hand = {}, {}, {}, None
    load = os.getloadavg()[0]
    if load > 0.7:
        print(
            f"peers: the load average is {load:.1f}; these are no figures to keep", file=sys.stderr
        )
    with tempfile.TemporaryDirectory() as folder:
        print("writing the data set as arrays, IDX files and PNGs", file=sys.stderr)
        sizes = child("--prepare", str(images), "--folder", folder)
        for i in range(rounds):
            # hand first in the first round: the others are compared with it
            first = i % len(names)
            for name in names[first:] + names[:first]:
                print(f"round {i + 1} of {rounds}: {peers[name][0]}", file=sys.stderr)
                found = child("--measure", name, "--folder", folder)
                hand = hand or found
                worst[name] = max(worst.get(name, 0), check(name, found, hand))
                versions |= found["versions"]
                row = seconds[name]
                row["import"].append(found["import"])
                row["setup"].append(found["engine"]["setup"])
                row["open"].append(found["documented"]["open"])
                for kind in ("engine", "documented"):
                    row[kind].append(found[kind]["epoch"])
            if i + 1 == rounds:
                turns = take_turns(names, images)
            yield {
                "machine": machine(), "load": load, "versions": versions, "images": sizes, "rounds": i + 1,
                "seconds": seconds, "turns": turns, "worst difference": worst,
            }  # fmt: skip


def take_turns(names, images):  # kind -> name -> seconds of each epoch
    found = {}
    for kind, (most, n, _) in in_turn.items():
        print(f"{kind}, {n} turns", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            child("--prepare", str(min(images, most)), "--folder", folder)
            asked = ("--peers", ",".join(names))
            found[kind] = child("--turns", kind, *asked, "--folder", folder)
    return found


def ratio(seconds, a, b):
    "Median of the ratios, turn by turn."
    return median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))


def report(results):  # markdown
    "The tables, the fastest first."
    m, seconds = results["machine"], results["seconds"]
    versions = ", ".join(
        f"{name} {version}" for name, version in sorted(results["versions"].items())
    )
    train, valid = (f"{n:,}" for n in results["images"])
    worst = max(results["worst difference"].values())
    lines = [
        "The same epoch through `fit` and through other trainers, measured by `python benchmarks/peers.py`:",
        "",
        f"{m['cores']} cores ({m['cpu']}), {m['threads']} threads, no graphics card; Python {m['python']}, "
        f"{versions}; load average {results['load']:.1f} before the run.",
        "",
        f"One epoch of training on {train} images and validation on {valid}, batches of {bs}, from the same "
        f"weights and in the same order; medians of {results['rounds']} interleaved rounds. Where torch "
        "computes, the loss of each step is the hand-written loop's, over batches that lie alike in memory, "
        f"to {worst:.1e}; Keras computes by jax, and is held to the validation loss only.",
    ]
    kinds = {
        "documented": (
            "As documented: each takes the data in the way that its documentation shows.",
            {"open": "open the data, s"},
        ),
        "engine": (
            "Engine only: each takes the same list of ready-made batches, and shows, logs and saves nothing.",
            {"import": "import, s", "setup": "first steps and compiling, s"},
        ),
    }
    for kind, (caption, more) in kinds.items():
        heads = [
            "trainer",
            "epoch, s",
            "ratio to the hand-written loop",
            "least and greatest ratio",
        ]
        heads += more.values()
        lines += [
            "",
            caption,
            "",
            f"| {' | '.join(heads)} |",
            "| --- |" + " ---: |" * (len(heads) - 1),
        ]
        by_hand = seconds["hand"][kind]
        ratios = {
            name: [s / h for s, h in zip(row[kind], by_hand, strict=True)]
            for name, row in seconds.items()
        }
        order = sorted(ratios, key=lambda name: median(ratios[name]))
        for name in order:
            r, row = ratios[name], seconds[name]
            cells = [
                f"{median(row[kind]):.2f}",
                f"{median(r):.2f}",
                f"{min(r):.2f} to {max(r):.2f}",
            ]
            cells += [f"{median(row[key]):.2f}" for key in more]
            lines.append(f"| {peers[name][0]} | {' | '.join(cells)} |")
    if results["turns"]:
        again = [ratio(turns, "again", "hand") for turns in results["turns"].values()]
        short, long = (len(results["turns"][kind]["hand"]) for kind in ("engine", "documented"))
        lines += [
            "",
            "The machine's speed changes from second to second. So those that come near to the hand-written "
            "loop are measured once more, by turns in one process, in a new order each time: engine only in "
            f"{short} short epochs, as documented in {long} whole ones. The hand-written loop, which has two "
            f"turns, comes to {again[0]:.2f} and {again[1]:.2f} of itself: no finer are these figures.",
        ]
    for kind, turns in results["turns"].items():
        title = "as documented" if kind == "documented" else "engine only"
        lines += ["", f"By turns, {title}:", ""]
        lines += ["| trainer | ratio to the hand-written loop |", "| --- | ---: |"]
        found = {name: ratio(turns, name, "hand") for name in turns if name != "hand"}
        for name in sorted(found, key=found.get):
            title = "hand-written loop, again" if name == "again" else peers[name][0]
            lines.append(f"| {title} | {found[name]:.2f} |")
    return "\n".join(lines) + "\n"


def main():
    "Measure, or be one of the processes in which something is measured."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often to measure each")
    parser.add_argument(
        "--images", type=int, default=60_000, help="of the training images, the first"
    )
    parser.add_argument(
        "--peers", default=",".join(peers), help="which; hand is always one of them"
    )
    parser.add_argument("--out", type=Path, default=here, help="folder for peers.json and peers.md")
    for name in ("prepare", "measure", "turns", "folder", "found"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.found:
        folder = Path(args.folder)
        if args.turns:
            found = by_turns(args.turns, args.peers.split(","), folder)
        else:
            found = (
                measure(args.measure, folder)
                if args.measure
                else prepare(folder, int(args.prepare))
            )
        Path(args.found).write_text(json.dumps(found))
        return
    asked = args.peers.split(",")
    if args.rounds < 1 or args.images < bs or not set(asked) <= set(peers):
        sys.exit(
            f"peers: expected 1 round or more, {bs} images or more, and some of {','.join(peers)}"
        )
    names = [name for name in peers if name == "hand" or name in asked]
    args.out.mkdir(exist_ok=True)
    for results in run(names, args.rounds, args.images):
        (args.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
        (args.out / "peers.md").write_text(report(results))
    print(report(results), end="")


if __name__ == "__main__":
    main()
