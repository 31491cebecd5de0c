"""One training step of the lesson's CNN, and a whole epoch: PyTorch in three ways and ours, side by side.

    python benchmarks/step.py                             # some three minutes on two cores
    python benchmarks/step.py --steps 50 --epochs 0       # a quick look

Prints a table and writes it to benchmarks/step.md. Only the ratios carry over to another machine. On a
machine with a CUDA device, PyTorch's ways run there too, with cuDNN; ours runs on the processor. Needs a
machine at rest: two threads with one free core are many times slower than one.
"""

import copy
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numba
import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import optim
from tqdm.auto import tqdm

from slowconv.convs import get_model
from slowconv.data import fashion_mnist, find_source, load_images
from slowconv.fast import FastNet, peak, products
from slowconv.training import fit

bs, lr = 256, 0.1
ours = "ours"


def machine():  # one line of text
    "What the figures were measured on."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} cores ({cpu}){gpu}, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, torch {torch.__version__}, numba {numba.__version__}"
    )


def eager(model):
    return model


def channels_last(model):
    return model.to(memory_format=torch.channels_last)


def compiled(model):
    return torch.compile(model)


makers = {"PyTorch eager": eager, "channels_last": channels_last, "torch.compile": compiled}
makers[ours] = FastNet


# The time that compiling takes is that of the first step in a process of its own: once with an empty
# cache, once with what the first has left there.
first_step = """
import sys, time
sys.path.insert(0, {folder!r})
import torch, step
torch.set_num_threads({threads})
torch.manual_seed(0)
net = step.makers[{name!r}](step.get_model().to({device!r}))
x, y = torch.rand(step.bs, 1, 28, 28, device={device!r}), torch.randint(10, (step.bs,), device={device!r})
go = step.stepper(net, x, y)
begin = time.perf_counter()
go()
print(time.perf_counter() - begin)
"""


def first_steps(name, device):  # (seconds with an empty cache, seconds with a full one)
    "A first step compiles whatever is to be compiled."
    code = first_step.format(
        folder=str(Path(__file__).parent), name=name, device=device, threads=torch.get_num_threads()
    )
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"NUMBA_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
        seconds = []
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", code], env=env, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{name} on {device}: {done.stderr}")
            seconds.append(float(done.stdout.split()[-1]))
    return seconds


def wait(device):
    if device != "cpu":
        torch.cuda.synchronize()


def stepper(net, xb, yb):  # a function that takes one step and waits for its end
    opt, device = optim.SGD(net.parameters(), lr=lr), xb.device.type

    def step():
        loss = F.cross_entropy(net(xb), yb)
        opt.zero_grad()
        loss.backward()
        opt.step()
        wait(device)
        return loss.detach()

    return step


def measure_steps(nets, batch, n):  # way -> seconds of each step
    "Steps of all ways by turns of 20, each turn after 5 that fill the caches and don't count."
    steps = {way: stepper(net, *(t.to(way[1]) for t in batch)) for way, net in nets.items()}
    first = {way: step().item() for way, step in steps.items()}
    assert max(first.values()) - min(first.values()) < 1e-3, f"unlike losses: {first}"
    seconds = {way: [] for way in steps}
    for begin_of_turn in tqdm(range(0, n, 20), "turns"):
        for way, step in steps.items():
            for i in range(-5, min(20, n - begin_of_turn)):
                begin = time.perf_counter()
                step()
                if i >= 0:
                    seconds[way].append(time.perf_counter() - begin)
    return seconds


def measure_epochs(nets, source, n):  # way -> seconds of each epoch, with its validation
    seconds = {way: [] for way in nets}
    dls = fashion_mnist(bs, source=source)
    for i in tqdm(range(n + 1), "epochs"):
        for way, net in nets.items():
            opt = optim.SGD(net.parameters(), lr=lr)
            result = fit(1, net, F.cross_entropy, opt, *dls, log=lambda line: None)
            if i:  # the first does not count: compiled code meets the last, smaller batch
                seconds[way].append(result.history[0]["seconds"])
    return seconds


def report(steps, epochs, compiling, share, busy):  # markdown
    def cell(seconds, way, scale, digits):
        base = seconds[("PyTorch eager", way[1] if way[0] != ours else "cpu")]
        mid, ratio = median(seconds[way]), median(seconds[way]) / median(base)
        least = min(seconds[way]) / min(base)
        return f"{mid * scale:.{digits}f} | {ratio:.2f} | {least:.2f} |"

    lines = [
        f"{machine()}; {busy}.",
        "",
        f"One training step on {bs} images (forward, loss, backward, SGD); `ours` is `FastNet` of lesson 10. "
        "Medians of "
        f"{len(next(iter(steps.values())))} steps of each, taken by turns of 20; ratios to PyTorch eager on "
        "the same device, of medians and of the least times. The first step of a process compiles.",
        "",
        "| way | device | ms a step | ratio | of the least | first step, s | the same, cached |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way in steps:
        first = f" {compiling[way][0]:.1f} | {compiling[way][1]:.1f} |"
        lines.append(f"| {way[0]} | {way[1]} | {cell(steps, way, 1000, 2)}{first}")
    lines += ["", share]
    if epochs:
        lines += [
            "",
            f"One epoch by `fit` on `fashion_mnist({bs})`, whose batches lie channels last for all of them, "
            f"with its validation, medians of {len(next(iter(epochs.values())))} of each:",
            "",
            "| way | device | seconds | ratio | of the least |",
            "| --- | --- | ---: | ---: | ---: |",
        ]
        lines += [f"| {way[0]} | {way[1]} | {cell(epochs, way, 1, 2)}" for way in epochs]
    return "\n".join(lines) + "\n"


@call_parse
def main(
    steps: int = 300,  # how many steps of each way
    epochs: int = 5,  # how many epochs of each way; 0 for none
):
    "Measure a step and an epoch."
    if steps < 1 or epochs < 0:
        sys.exit(f"step: --steps {steps} --epochs {epochs}: expected at least 1 and 0")
    busy = f"load average {os.getloadavg()[0]:.1f} before the run"
    source = find_source("fashion_mnist")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    ways = [(name, d) for d in devices for name in makers if d == "cpu" or name != ours]
    compiling = {way: first_steps(*way) for way in tqdm(ways, "first steps")}
    torch.manual_seed(42)
    start = get_model()
    nets = {(name, d): makers[name](copy.deepcopy(start).to(d)) for name, d in ways}
    images, labels = load_images("fashion_mnist", "train", source)
    seconds = measure_steps(nets, (images[:bs, None].float() / 255, labels[:bs]), steps)
    plan, _ = nets[ours, "cpu"].plan((1, 28, 28))
    counts, best = products(plan), peak()
    needed = (3 * sum(counts) - counts[0]) * bs
    share = (
        f"Our step needs {needed / 1e6:.1f} million multiply-adds, {1000 * needed / best:.2f} ms at the "
        f"measured peak of {best / 1e9:.0f} billion per second: it reaches "
        f"{needed / best / median(seconds[ours, 'cpu']):.0%} of it, PyTorch eager "
        f"{needed / best / median(seconds['PyTorch eager', 'cpu']):.0%}."
    )
    took = measure_epochs(nets, source, epochs) if epochs else {}
    text = report(seconds, took, compiling, share, busy)
    print(text, end="")
    (Path(__file__).parent / "step.md").write_text(text, encoding="utf-8")
