"""One epoch of the lesson's CNN through slowconv's `fit` and through other trainers, on the CPU.

    make benchmarks/.peers                           # an environment with all of them
    P=benchmarks/.peers/bin/python
    $P benchmarks/peers.py                           # 25 rounds: some 25 minutes on two cores
    $P benchmarks/peers.py --rounds 1 --images 6000  # a quick look: three minutes
    $P benchmarks/peers.py --save                    # and its tables go into benchmarks/README.md

All trainers run in one process, in rounds and in random order, each
time from the same weights; Keras runs once more in another, where torch is its backend. Exits with an error
if an engine made of torch, over the same batches, doesn't come to the loss of the hand-written loop.
"""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from functools import cache, partial
from importlib import metadata
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from common import bs, lr
from fastcore.script import call_parse
from PIL import Image
from torch import optim
from tqdm import tqdm

from slowconv import fashion_mnist, fit, get_model, load_images

limit = 60  # seconds; a trainer that has taken longer sits out the rounds that are left
packages = ("accelerate", "fastai", "jax", "keras", "lightning", "skorch", "torchvision")


# The data. `folder` is what `write_data` made.


def write_data(folder, images):  # how many images there are to train on and to validate with
    "The data set as IDX files and as folders of PNG files."
    splits = [load_images("fashion_mnist", split) for split in ("train", "test")]
    splits = [(x[:images], y[:images]) for x, y in splits]
    common.write_idx(folder, splits)
    for split, (x, y) in zip(("train", "test"), splits, strict=True):
        for label in range(10):
            (Path(folder) / "png" / split / str(label)).mkdir(parents=True)
        for i, (a, label) in enumerate(zip(tqdm(x.numpy(), "PNGs"), y.tolist(), strict=True)):
            Image.fromarray(a).save(f"{folder}/png/{split}/{label}/{i}.png")
    return [len(y) for _, y in splits]


@cache
def arrays(folder):
    raw = Path(folder) / "FashionMNIST" / "raw"
    return [load_images("fashion_mnist", split, raw) for split in ("train", "test")]


class Batches(list):
    "Lightning takes a mere list for several loaders."


@cache
def ready_batches(folder):
    "The same lists of batches for everyone."
    torch.manual_seed(0)
    return [Batches(batches) for batches in by_index(folder)]


def by_index(folder):
    train, valid = arrays(folder)
    return common.ByIndex(*train, shuffle=True), common.ByIndex(*valid)


def from_slowconv(folder):
    return fashion_mnist(bs, source=f"{folder}/FashionMNIST/raw")


def from_torchvision(folder):
    "docs.pytorch.org, quickstart tutorial"
    from torch.utils.data import DataLoader
    from torchvision.datasets import FashionMNIST
    from torchvision.transforms import ToTensor

    train, valid = (FashionMNIST(folder, train, transform=ToTensor()) for train in (True, False))
    return DataLoader(train, bs, shuffle=True), DataLoader(valid, bs)


def from_pngs(folder):
    "docs.fast.ai, vision tutorial: folders of images, decoded by worker processes"
    from fastai.vision.all import ImageDataLoaders, PILImageBW

    dls = ImageDataLoaders.from_folder(
        f"{folder}/png", train="train", valid="test", bs=bs, img_cls=PILImageBW, drop_last=False,
        device=torch.device("cpu"),
    )  # fmt: skip
    return dls.train, dls.valid


def from_arrays(folder, axis):
    """float32 arrays. skorch.readthedocs.io, MNIST notebook: [N,1,28,28], `axis` 1
    keras.io, introduction for engineers: [N,28,28,1], `axis` -1"""
    return [(x.unsqueeze(axis).float().div(255).numpy(), y.numpy()) for x, y in arrays(folder)]


# The trainers: an epoch of SGD from the model's weights on, with validation, as each documentation says.
# `engine_only` is without bars, logs and files. Each returns (mean validation loss, accuracy).


def by_hand(model, train, valid, engine_only):
    return common.by_hand(model, train, valid)


def by_fit(model, train, valid, engine_only, bar=False):
    opt = optim.SGD(model.parameters(), lr=lr)
    return fit(1, model, F.cross_entropy, opt, train, valid, bar)


def by_fastnet(model, train, valid, engine_only):
    "Lesson 10's convolution, in the same loop."
    from slowconv.fast import FastNet

    return by_fit(FastNet(model), train, valid, engine_only)


def by_tutorial(model, train, valid, engine_only):
    "docs.pytorch.org, quickstart tutorial: a line for every hundredth batch"
    opt = optim.SGD(model.parameters(), lr=lr)
    model.train()
    for i, (xb, yb) in enumerate(train):
        loss = F.cross_entropy(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
        if i % 100 == 0:
            print(f"loss {loss.item():.4f}, batch {i}")
    return common.validate(model, valid)


def by_accelerate(model, train, valid, engine_only):
    "huggingface.co/docs/accelerate, quicktour"
    from accelerate import Accelerator

    accelerator = Accelerator()
    opt = optim.SGD(model.parameters(), lr=lr)
    model, opt, train, valid = accelerator.prepare(model, opt, train, valid)
    model.train()
    for xb, yb in train:
        opt.zero_grad()
        accelerator.backward(F.cross_entropy(model(xb), yb))
        opt.step()
    return common.validate(model, valid, accelerator.gather_for_metrics)


def by_lightning(model, train, valid, engine_only):
    "lightning.ai/docs, Lightning in 15 minutes"
    import lightning as L

    class Lesson(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, batch_idx):
            xb, yb = batch
            loss = F.cross_entropy(self.model(xb), yb)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            xb, yb = batch
            pred = self.model(xb)
            self.log("val_loss", F.cross_entropy(pred, yb))
            self.log("val_acc", (pred.argmax(1) == yb).float().mean())

        def configure_optimizers(self):
            return optim.SGD(self.parameters(), lr=lr)

    bare = {
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "logger": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = L.Trainer(max_epochs=1, **(bare if engine_only else {}))
    trainer.fit(Lesson(), train, valid)
    return trainer.callback_metrics["val_loss"].item(), trainer.callback_metrics["val_acc"].item()


def by_fastai(model, train, valid, engine_only):
    "docs.fast.ai, Learner"
    from fastai.vision.all import SGD, DataLoaders, Learner, accuracy

    dls, options = DataLoaders(train, valid), {"opt_func": SGD, "lr": lr, "metrics": accuracy}
    learn = Learner(dls, model, loss_func=F.cross_entropy, **options)
    with contextlib.ExitStack() as stack:
        for quiet in (learn.no_bar(), learn.no_logging()) if engine_only else ():
            stack.enter_context(quiet)
        learn.fit(1)
    return learn.recorder.values[-1][1:]


def by_skorch(model, train, valid, engine_only):
    "skorch.readthedocs.io, NeuralNetClassifier"
    from skorch import NeuralNetClassifier
    from skorch.dataset import Dataset
    from skorch.helper import predefined_split

    if engine_only:
        options = {
            "dataset": lambda x, y: x, "classes": list(range(10)), "verbose": 0,
            "iterator_train": lambda ds, **_: ds, "iterator_valid": lambda ds, **_: ds,
        }  # fmt: skip
    else:
        options = {"batch_size": bs, "iterator_train__shuffle": True}
        valid = Dataset(*valid)
    options |= {"lr": lr, "max_epochs": 1, "train_split": predefined_split(valid)}
    net = NeuralNetClassifier(model, criterion=torch.nn.CrossEntropyLoss, **options)
    net.fit(train, None) if engine_only else net.fit(*train)
    return net.history[-1, "valid_loss"], net.history[-1, "valid_acc"]


@cache
def keras_model():
    import keras
    from keras import layers

    model = keras.Sequential([keras.Input((28, 28, 1))])
    for nf, act in ((4, "relu"), (8, "relu"), (16, "relu"), (16, "relu"), (10, None)):
        # padding="same" would put all of it on the right, where torch has it on both sides
        model.add(layers.ZeroPadding2D(1))
        model.add(layers.Conv2D(nf, 3, strides=2, activation=act))
    model.add(layers.Flatten())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(lr), loss=loss, metrics=["accuracy"])
    return model


def by_keras(model, train, valid, engine_only):
    "keras.io, introduction for engineers; ready-made batches come in as a torch DataLoader"
    weights = [p.detach().numpy() for p in model.parameters()]
    net = keras_model()  # always the same: what is compiled belongs to it
    net.set_weights([w.transpose(2, 3, 1, 0) if w.ndim == 4 else w for w in weights])
    if engine_only:
        from torch.utils.data import DataLoader

        feeds = [[(xb.permute(0, 2, 3, 1), yb) for xb, yb in feed] for feed in (train, valid)]
        train, valid = (DataLoader(feed, batch_size=None) for feed in feeds)
        done = net.fit(train, validation_data=valid, verbose=0)
    else:
        done = net.fit(*train, batch_size=bs, epochs=1, validation_data=valid)
    return done.history["val_loss"][-1], done.history["val_accuracy"][-1]


@cache
def jax_functions():  # one step of SGD, and (sum of losses, right answers) of a batch
    import jax
    from jax import lax

    def logits(params, x):  # [N,28,28,1] -> [N,10]
        for i, (w, b) in enumerate(params):
            x = lax.conv_general_dilated(
                x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = x + b if i == len(params) - 1 else jax.nn.relu(x + b)
        return x.reshape(len(x), -1)

    def losses(params, x, y):
        scores = logits(params, x)
        return -jax.nn.log_softmax(scores)[jax.numpy.arange(len(y)), y], scores

    @jax.jit
    def step(params, x, y):
        grads = jax.grad(lambda params: losses(params, x, y)[0].mean())(params)
        return jax.tree.map(lambda p, g: p - lr * g, params, grads)

    @jax.jit
    def evaluate(params, x, y):
        each, scores = losses(params, x, y)
        return each.sum(), (scores.argmax(1) == y).sum()

    return step, evaluate


def by_jax(model, train, valid, engine_only):
    "docs.jax.dev, a compiled step on a tree of parameters, without any library on top"
    step, evaluate = jax_functions()
    params = [
        (layer.weight.detach().numpy().transpose(2, 3, 1, 0), layer.bias.detach().numpy())
        for layer in model.modules()
        if isinstance(layer, torch.nn.Conv2d)
    ]
    if engine_only:
        train, valid = (
            [(xb.permute(0, 2, 3, 1).numpy(), yb.numpy()) for xb, yb in feed]
            for feed in (train, valid)
        )
    else:
        x, y = train
        order = torch.randperm(len(y)).numpy()
        train = ((x[order[i : i + bs]], y[order[i : i + bs]]) for i in range(0, len(y), bs))
        x_valid, y_valid = valid
        valid = [(x_valid[i : i + bs], y_valid[i : i + bs]) for i in range(0, len(y_valid), bs)]
    for xb, yb in train:
        params = step(params, xb, yb)
    found = [evaluate(params, xb, yb) for xb, yb in valid]
    n = sum(len(yb) for _, yb in valid)
    return [float(sum(part)) / n for part in zip(*found, strict=True)]


hand, keras = "hand-written loop", "Keras"
tensors, one_by_one, floats = "tensors, by index", "torchvision, `ToTensor`", "float32 arrays"
with_bar = partial(by_fit, bar=True)
peers = {  # trainer, data, and the data in words
    hand: (by_hand, by_index, tensors),
    "hand-written loop, again": (by_hand, by_index, tensors),
    "slowconv `fit`": (by_fit, from_slowconv, "`fashion_mnist()`"),
    "slowconv `fit`, progress bar on": (with_bar, from_slowconv, "`fashion_mnist()`"),
    "slowconv `fit` with `FastNet`": (by_fastnet, from_slowconv, "`fashion_mnist()`"),
    "PyTorch tutorial": (by_tutorial, from_torchvision, one_by_one),
    "Accelerate": (by_accelerate, from_torchvision, one_by_one),
    "Lightning": (by_lightning, from_torchvision, one_by_one),
    "fastai": (by_fastai, from_pngs, "PNG files"),
    "skorch": (by_skorch, partial(from_arrays, axis=1), floats),
    keras: (by_keras, partial(from_arrays, axis=-1), floats),
    "a plain `jax.jit` step": (by_jax, partial(from_arrays, axis=-1), floats),
}


# Measuring, in a new process


def epoch(trainer, train, valid, engine_only):  # (mean validation loss, accuracy)
    "From the same weights, and with nobody there to see bars and lines."
    torch.manual_seed(42)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        return trainer(get_model(), train, valid, engine_only)


def measure(names, engine_only, rounds, folder):  # rows of a table
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.chdir(folder)  # Lightning leaves files
    runs = {}
    for name in names:
        trainer, feed, _ = peers[name]
        train, valid = ready_batches(folder) if engine_only else feed(folder)
        runs[name] = partial(epoch, trainer, train, valid, engine_only)
    seconds, results = common.interleave(runs, rounds, limit)
    for name, (loss, _) in results.items():
        wanted = results[hand][0]
        most = (
            0.05 if peers[name][0] in (by_fastnet, by_jax, by_keras) else 1e-5
        )  # others round differently
        unlike = engine_only and abs(loss - wanted) > most
        # as documented, each shuffles in its own way; 2.303 is the loss of a guess
        if unlike or not loss < 2.31:
            sys.exit(f"peers: {name}: validation loss {loss}, by hand {wanted}")
    return common.compare(seconds, hand)


def ratios(engine_only, rounds, folder):  # rows of a table, the fastest first
    rows = []
    for backend, names in (("jax", list(peers)), ("torch", [hand, keras])):
        os.environ["KERAS_BACKEND"] = backend
        found = common.in_new_process(measure, names, engine_only, rounds, folder)
        for name, *figures in found if backend == "jax" else found[1:]:
            data = [] if engine_only else [peers[name][2]]
            name = f"Keras, {backend} backend" if name == keras else name
            rows.append((name, *data, *figures))
    return sorted(rows, key=lambda row: row[-2])


@call_parse
def main(
    rounds: common.positive = 25,  # how often to measure each, at most
    images: common.positive = 60_000,  # of the training images, the first
    save: bool = False,  # put the tables into benchmarks/README.md
):
    "Measure an epoch by each trainer, as documented and engine only."
    try:
        [metadata.version(name) for name in packages]
    except metadata.PackageNotFoundError as e:
        sys.exit(
            f"peers: no {e.name} in this environment; `make benchmarks/.peers` makes one that has it"
        )
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    load = common.wait_for_rest(save)
    with tempfile.TemporaryDirectory() as folder:
        n, n_valid = write_data(folder, images)
        documented, engine = (ratios(only, rounds, folder) for only in (False, True))
    figures = ("epoch, s", "ratio to the hand-written loop", "its quartiles")
    parts = [
        common.machine(*packages, load=load),
        f"One epoch of training on {n:,} images and validation on {n_valid:,}, batches of {bs}, from the "
        f"same weights; medians of {rounds} rounds in one process, in random order. Who has taken {limit} "
        "seconds in all sits out the rounds that are left. A ratio is taken within a round.",
        "**Trainer and data as documented.** Each takes the data as its documentation shows, so most of a "
        "large ratio is the price of decoding images one by one.",
        common.table(("trainer", "data", *figures), documented),
        "**Engine only.** Each takes the same list of ready-made batches, logs and saves nothing, and comes "
        "to the same validation loss. (For that, Keras needs a layer that pads before each convolution.)",
        common.table(("trainer", *figures), engine),
    ]
    common.report("peers", parts, save)
