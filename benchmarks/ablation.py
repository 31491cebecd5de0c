"""What helps a small network: each change by itself, and all of them but one.

    python benchmarks/ablation.py

Two networks like `residual_net`'s, of 494 and of 5,216 numbers, train on 50,000 training images and are
judged by the 10,000 others; the test set is left alone. Each run is a line in benchmarks/ablation.jsonl; what
is there already isn't run again. It's made for a GPU, where a network's step is recorded once and then
replayed (a CUDA graph), and took four minutes a seed there. On two cores it would take days.
"""

import sys
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from best import lr, numbers
from common import bs, here
from fastcore.script import call_parse
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

from slowconv.best import Residual, separable
from slowconv.better import FlipShift, Normalize, pooled_head, with_batchnorm
from slowconv.convs import conv, def_device, init_weights
from slowconv.data import load_images
from slowconv.training import accuracy

results = here / "ablation.jsonl"
plain = {"epochs": 20, "shift": 0, "flip": False, "smoothing": 0.0, "teacher": 0.0}
changes = {
    "twice the epochs": {"epochs": 40},
    "shifts by a pixel": {"shift": 1},
    "flips": {"flip": True},
    "label smoothing": {"smoothing": 0.1},
    "a teacher": {"teacher": 0.5},  # share of its answers in the loss
}
# width against depth, and blocks that are used several times: stem, then (channels, blocks, uses of each)
shapes = {
    500: {
        "plain": [4, [8, 2, 1]],
        "wider": [6, [10, 1, 1]],
        "deeper": [5, [6, 3, 1]],
        "blocks used three times": [6, [9, 1, 3]],
    },
    5274: {
        "plain": [8, [17, 4, 1], [28, 2, 1]],
        "wider": [8, [23, 2, 1], [38, 1, 1]],
        "deeper": [8, [13, 6, 1], [24, 3, 1]],
        "blocks used three times": [8, [24, 1, 3], [40, 1, 3]],
    },
}


def jobs(limit):  # dict from name to configuration
    every = plain | {k: v for change in changes.values() for k, v in change.items()}
    found = {"plain": plain} | {name: plain | change for name, change in changes.items()}
    found["all"] = every
    for name, change in changes.items():
        found[f"all but {name}"] = every | {k: plain[k] for k in change}
    found |= {name: plain for name in shapes[limit]}
    return {
        k: v | {"shape": shapes[limit].get(k, shapes[limit]["plain"])} for k, v in found.items()
    }


class Again(nn.Module):
    "One block, used several times; each time has a BatchNorm of its own."

    def __init__(self, nf, times):
        super().__init__()
        self.depthwise, self.pointwise, _ = separable(nf, nf, stride=1)
        self.pointwise.bias = None
        self.norms = nn.ModuleList(nn.BatchNorm2d(nf) for _ in range(times))

    def forward(self, x):
        for norm in self.norms:
            x = x + F.relu(norm(self.pointwise(self.depthwise(x))))
        return x


def finish(body, ni):
    "With BatchNorms, a head, and pixels that are standardised first."
    model = with_batchnorm(nn.Sequential(*body)).append(pooled_head(ni)).apply(init_weights)
    return model.insert(0, Normalize(0.286, 0.353)).to(def_device)


def build(stem, *stages):
    body, ni = [conv(1, stem, stride=1)], stem
    for nf, blocks, times in stages:
        body.append(separable(ni, nf))
        for _ in range(blocks):
            body.append(Again(nf, times) if times > 1 else Residual(separable(nf, nf, stride=1)))
        ni = nf
    return finish(body, ni)


def needed(model):
    "Numbers of a file. The BatchNorms of a convolution that is used again can't be worked into it."
    again = [m for m in model.modules() if isinstance(m, Again)]
    return numbers(model) + sum(len(norm.weight) for m in again for norm in m.norms)


def one_cycle(steps):
    opt, rates = optim.SGD([torch.zeros(1)], lr), []
    sched = OneCycleLR(opt, lr, steps, pct_start=0.2, cycle_momentum=False)
    for _ in range(steps):
        rates += sched.get_last_lr()
        opt.step()
        sched.step()
    return rates


def train(
    config, seed, images, labels, teacher
):  # the network, and the running mean of its numbers
    torch.manual_seed(seed)
    model, augment = build(*config["shape"]), FlipShift(config["shift"], flip=config["flip"])
    steps = len(labels) // bs
    total = steps * config["epochs"]
    # the first three steps don't move the weights
    rates = torch.tensor([0.0] * 3 + one_cycle(total), device=def_device)
    done = torch.zeros(1, dtype=torch.long, device=def_device)
    order = torch.randperm(len(labels), device=def_device)
    rate, on_gpu = torch.zeros((), device=def_device), def_device == "cuda"
    opt = optim.AdamW(model.parameters(), rate, capturable=on_gpu, fused=on_gpu)
    state = [t for t in model.state_dict().values() if t.is_floating_point()]
    averaged = [t.clone() for t in state]

    def step():
        i = order[done % steps * bs + torch.arange(bs, device=def_device)]
        x, y = augment(images[i][:, None].float() / 255), labels[i]
        logits = model(x)
        loss = F.cross_entropy(logits, y, label_smoothing=config["smoothing"])
        if share := config["teacher"]:  # at temperature 2 (arxiv.org/abs/1503.02531)
            told = teacher(x) / 2  # about the same view
            gap = F.kl_div((logits / 2).log_softmax(1), told.softmax(1), reduction="batchmean")
            loss = (1 - share) * loss + share * 4 * gap
        loss.backward()
        rate.copy_(rates[done][0])
        opt.step()
        opt.zero_grad()
        done.add_(1)
        with torch.no_grad():  # over some 500 steps
            torch._foreach_lerp_(averaged, state, 0.002)

    step = common.recorded(step)
    for k in range(int(done), total + 3):
        if k % steps == 0:
            order.copy_(torch.randperm(len(labels), device=def_device))
        step()
    return model.eval(), (state, averaged)


@torch.no_grad()
def judge(model, images, labels):  # accuracy
    logits = [model(x[:, None].float() / 255) for x in images.split(1000)]
    return round(accuracy(labels, torch.cat(logits)).item(), 4)


def teach(images, labels, epochs=14):
    "A plain residual network of some 330,000 parameters, trained on the same images."
    torch.manual_seed(0)
    body, ni = [conv(1, 32, stride=1)], 32
    for nf in (64, 128):
        body += [conv(ni, nf), Residual(*(conv(nf, nf, stride=1) for _ in range(2)))]
        ni = nf
    net, augment, steps = finish(body, ni), FlipShift(1), len(labels) // bs
    opt = optim.AdamW(net.parameters(), weight_decay=0.05)
    sched = OneCycleLR(opt, 0.01, epochs * steps, pct_start=0.2)
    for _ in tqdm(range(epochs), "teacher"):
        for i in torch.randperm(len(labels), device=def_device)[: steps * bs].split(bs):
            x = augment(images[i][:, None].float() / 255)
            F.cross_entropy(net(x), labels[i]).backward()
            opt.step()
            opt.zero_grad()
            sched.step()
    return net.eval().requires_grad_(False)


@call_parse
def main(
    seeds: int = 2,
    n_train: int = 50_000,  # images to train on
    out: Path = results,  # file of the runs
):
    "Train what isn't there yet."
    images, labels = (t.to(def_device) for t in load_images("fashion_mnist", "train"))
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0)).to(def_device)
    ours, others = [(images[i], labels[i]) for i in (order[:n_train], order[50_000:])]
    there = {(r["limit"], r["name"], r["seed"]) for r in common.read_runs(out)}
    every = [(n, k, s, c) for s in range(seeds) for n in shapes for k, c in jobs(n).items()]
    todo = [job for job in every if job[:3] not in there]
    if not todo:
        sys.exit(f"ablation: {out.name} has them all")
    teacher = teach(*ours) if any(config["teacher"] for *_, config in todo) else None
    if teacher:
        print(f"the teacher's accuracy: {judge(teacher, *others)}")
    for limit, name, seed, config in tqdm(todo, "networks"):
        model, (state, averaged) = train(config, seed, *ours, teacher)
        line = {"limit": limit, "name": name, "seed": seed, **config, "numbers": needed(model)}
        line["accuracy"] = judge(model, *others)
        torch._foreach_copy_(state, averaged)
        common.add_run(out, line | {"averaged": judge(model, *others)})
