"""Hundreds of small networks, trained side by side on a GPU: what to build from few numbers, what helps.

    python benchmarks/side_by_side.py helps   # one network of 5,216 numbers and one of 494, with and without
    python benchmarks/side_by_side.py shapes  # width against depth, and blocks that are used several times

Networks of one shape become one network with groups, and a step of it is recorded once and then replayed
(a CUDA graph), so a GPU is done in a few minutes. On a CPU it would take days. All train on 50,000 training
images and are judged by the 10,000 others. Each run is a line in benchmarks/side_by_side.jsonl. Lesson 12's
networks are chosen by these runs.
"""

import sys
from functools import partial
from math import prod
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from slowconv.best import Residual
from slowconv.better import pooled_head, with_batchnorm
from slowconv.convs import conv, def_device, init_weights
from slowconv.data import load_images

bs, seeds = 256, {"helps": 5, "shapes": 3}
recipe = {"epochs": 40, "lr": 0.02, "flip": 0, "shift": 1, "smoothing": 0.0, "teacher": 0.0}
helps = {
    "as it is": {},
    "flips": {"flip": 1},
    "no shifts": {"shift": 0},
    "flips, no shifts": {"flip": 1, "shift": 0},
    "label smoothing": {"smoothing": 0.1},
    "a teacher's answers, half": {"teacher": 0.5},
    "a teacher's answers, mostly": {"teacher": 0.9},
    "half the learning rate": {"lr": 0.01},
    "twice the learning rate": {"lr": 0.04},
    "20 epochs": {"epochs": 20},
    "80 epochs": {"epochs": 80},
}
# stem, then (channels, blocks, how often each block is used) of each stage
large, small = (8, (17, 4, 1), (28, 2, 1)), (4, (8, 2, 1))
shapes = [
    *(
        large,
        (12, (21, 4, 1), (28, 1, 1)),
        (8, (12, 6, 1), (25, 3, 1)),
        (8, (20, 3, 2), (34, 1, 3)),
    ),
    *((6, (11, 3, 1), (19, 1, 1)), (6, (11, 2, 1), (16, 2, 1)), (6, (15, 4, 1))),
    *((6, (12, 1, 4), (22, 1, 3)), (6, (12, 2, 2), (19, 1, 3))),
    *((4, (7, 2, 1), (13, 1, 1)), (5, (11, 3, 1)), (4, (8, 1, 3), (13, 1, 3)), (5, (17, 1, 5))),
    *(small, (3, (5, 1, 1), (7, 1, 1)), (3, (5, 1, 2), (7, 1, 2)), (4, (9, 1, 4))),
]


def layers(
    shape,
):  # of each separable layer: channels in and out, stride, are its weights used again?
    stem, *stages = shape
    found, ni = [], stem
    for nf, blocks, times in stages:
        found += [(ni, nf, 2, False)]
        found += [(nf, nf, 1, n > 0) for _ in range(blocks) for n in range(times)]
        ni = nf
    return found, ni


def numbers(shape):
    """What a file needs, with each BatchNorm worked into its convolution. If weights are used several times,
    that can't be done, and each time needs a factor and an offset for each channel."""
    (stem, *stages), (found, last) = shape, layers(shape)
    n = 10 * stem + 10 * last + 10
    n += sum(9 * ni + ni * nf + nf for ni, nf, _, again in found if not again)
    return n + sum(blocks * (2 * times - 1) * nf for nf, blocks, times in stages if times > 1)


class Networks:
    "Networks of one shape, trained as one with groups: weights [n,...], maps [images,n*channels,H,W]."

    def __init__(self, shape, configs, images, labels, teacher):
        # images: uint8 [N,30,30], with a border of zeros; teacher: its logits [18,N,10], for each view
        self.images, self.labels, self.teacher = images, labels, teacher
        self.n, self.steps = len(configs), len(labels) // bs
        (found, last), stem = layers(shape), shape[0]
        self.kinds = [("conv", stem, 1, 3, 3), ("factor", stem), ("offset", stem)]
        self.plan = []  # of each separable layer: where its weights and its BatchNorm are, and its stride
        for ni, nf, stride, again in found:
            if not again:
                at = len(self.kinds)
                self.kinds += [("conv", ni, 1, 3, 3), ("conv", nf, ni)]
            self.plan.append((at, len(self.kinds), stride))
            self.kinds += [("factor", nf), ("offset", nf)]
        self.kinds += [("head", 10, last), ("offset", 10)]
        self.flat = torch.stack([self.start(c["seed"]) for c in configs]).to(
            def_device
        )  # [n,numbers]
        self.weights = [nn.Parameter(w) for w in self.split(self.flat)]  # they share its memory
        self.averaged, self.moments = self.flat.clone(), [torch.zeros_like(self.flat) for _ in "12"]
        channels = [stem, *(nf for _, nf, _, _ in found)]
        self.running = [
            [f(self.n * c, device=def_device) for c in channels] for f in (torch.zeros, torch.ones)
        ]
        self.lr, self.flip, self.shift, self.smoothing, self.taught = (
            torch.tensor([[float(c[k])] for c in configs], device=def_device)
            for k in ("lr", "flip", "shift", "smoothing", "teacher")
        )
        self.total = configs[0]["epochs"] * self.steps
        opt = optim.SGD([torch.zeros(1)], 1)
        sched, self.rates = OneCycleLR(opt, 1, self.total, pct_start=0.2, cycle_momentum=False), []
        for _ in range(self.total):
            self.rates += sched.get_last_lr()
            opt.step()
            sched.step()
        self.rates = torch.tensor(self.rates, device=def_device)
        self.done = torch.zeros(1, dtype=torch.long, device=def_device)  # steps
        self.order = torch.zeros(self.n, len(labels), dtype=torch.long, device=def_device)

    def start(self, seed):  # as `init_weights` does
        g, parts = torch.Generator().manual_seed(seed), []
        for kind, *size in self.kinds:
            if kind in ("factor", "offset"):
                parts.append(torch.full(size, float(kind == "factor")))
            else:
                gain = 1 if kind == "head" else 2
                parts.append(torch.randn(size, generator=g) * (gain / prod(size[1:])) ** 0.5)
        return torch.cat([p.flatten() for p in parts])

    def split(self, flat):
        sizes = [size for _, *size in self.kinds]
        parts = flat.split([prod(size) for size in sizes], 1)
        return [p.view(self.n, *size) for p, size in zip(parts, sizes, strict=True)]

    def forward(self, x, weights, training):  # [N,n,28,28] -> logits [n,N,10]
        norms = iter(zip(*self.running, strict=True))

        def norm(x, at):
            factor, offset = (w.flatten() for w in weights[at : at + 2])
            return F.relu(F.batch_norm(x, *next(norms), factor, offset, training))

        x = norm(F.conv2d(x, weights[0].flatten(0, 1), padding=1, groups=self.n), 1)
        for at, bn, stride in self.plan:
            kernels, mix = weights[at].flatten(0, 1), weights[at + 1]
            y = F.conv2d(x, kernels, None, stride, 1, groups=len(kernels))
            y = mix @ y.view(len(y), self.n, -1, y.shape[2] * y.shape[3])
            y = norm(
                y.view(len(y), -1, *(x.shape[2:] if stride == 1 else (x.shape[2] // 2,) * 2)), bn
            )
            x = x + y if stride == 1 else y
        means = x.mean((2, 3)).view(len(x), self.n, -1)
        return torch.einsum("inc,nkc->nik", means, weights[-2]) + weights[-1][:, None]

    def step(self):
        n, steps = self.n, torch.arange(bs, device=def_device)
        idx = self.order[:, self.done % self.steps * bs + steps]  # [n,bs], other images for each
        flips = torch.rand(n, bs, device=def_device) < self.flip / 2
        corner = torch.randint(-1, 2, (2, n, bs), device=def_device) * self.shift.long() + 1
        pos = corner[..., None] + torch.arange(
            28, device=def_device
        )  # rows and columns, [2,n,bs,28]
        cols = torch.where(flips[..., None], 29 - pos[1], pos[1])
        x = self.images[idx[..., None, None], pos[0][..., None], cols[:, :, None]]
        logits = self.forward(standardise(x).transpose(0, 1), self.weights, True)
        logs = logits.log_softmax(2)
        hit = logs.gather(2, self.labels[idx][..., None])[..., 0]
        loss = -(1 - self.smoothing) * hit - self.smoothing * logs.mean(2)  # [n,bs]
        told = self.teacher[9 * flips + 3 * corner[0] + corner[1], idx].float() / 2
        ours = (logits / 2).log_softmax(2)  # both at temperature 2, arxiv.org/abs/1503.02531
        gap = F.kl_div(ours, told.log_softmax(2), reduction="none", log_target=True).sum(2)
        loss = (1 - self.taught) * loss + self.taught * 4 * gap
        grads = torch.autograd.grad(loss.mean(1).sum(), self.weights)
        self.update(torch.cat([g.flatten(1) for g in grads], 1))

    @torch.no_grad()
    def update(self, g):  # AdamW, as PyTorch has it, and a mean of the weights of some 1,000 steps
        (m, v), t = self.moments, self.done + 1.0
        m.lerp_(g, 0.1)
        v.lerp_(g * g, 0.001)
        lr = self.lr * self.rates[self.done]
        self.flat.mul_(1 - 0.01 * lr)
        self.flat.sub_(lr * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
        self.averaged.lerp_(self.flat, (9 / (9 + t)).clamp_min(0.001))
        self.done.add_(1)

    def record(self):  # (the recorded step, its stream)
        state = [
            self.flat,
            self.averaged,
            self.done,
            *self.moments,
            *self.running[0],
            *self.running[1],
        ]
        before, stream, graph = (
            [t.clone() for t in state],
            torch.cuda.Stream(),
            torch.cuda.CUDAGraph(),
        )
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(3):  # cuDNN chooses its ways before the recording
                self.step()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            self.step()
        for t, b in zip(state, before, strict=True):
            t.copy_(b)
        torch.cuda.synchronize()
        return graph, stream

    def shuffle(self):
        self.order.copy_(torch.rand(self.order.shape, device=def_device).argsort(1))

    @torch.no_grad()
    def judge(self, images, labels, averaged=False):  # accuracies [n]
        weights, right = self.split(self.averaged if averaged else self.flat), 0
        for x, y in zip(images.split(1000), labels.split(1000), strict=True):
            x = standardise(x)[:, None].expand(-1, self.n, -1, -1)
            right += (self.forward(x, weights, False).argmax(2) == y).sum(1)
        return (right / len(labels)).tolist()


def standardise(x):
    return (x.float() / 255 - 0.286) / 0.353


def train(groups):
    "`Networks` of one number of steps, each on a stream of its own."
    if def_device != "cuda":  # slow, but it works
        for g in groups:
            for k in range(g.total):
                if k % g.steps == 0:
                    g.shuffle()
                g.step()
        return
    recorded = [g.record() for g in groups]
    for k in tqdm(range(max(g.total for g in groups)), "steps"):
        for g, (graph, stream) in zip(groups, recorded, strict=True):
            if k < g.total:
                with torch.cuda.stream(stream):
                    if k % g.steps == 0:
                        g.shuffle()
                    graph.replay()
    torch.cuda.synchronize()


def teach(images, labels, epochs=14):  # logits [18,N,10] for each image's views, as half floats
    "Train a plain residual network of 330,000 parameters, and ask it about each image, flipped and shifted."
    torch.manual_seed(0)
    body = [
        conv(1, 32, stride=1),
        conv(32, 64),
        Residual(conv(64, 64, stride=1), conv(64, 64, stride=1)),
    ]
    body += [conv(64, 128), Residual(conv(128, 128, stride=1), conv(128, 128, stride=1))]
    net = with_batchnorm(nn.Sequential(*body)).append(pooled_head(128)).apply(init_weights)
    net.to(def_device, memory_format=torch.channels_last)
    opt, steps = optim.AdamW(net.parameters(), weight_decay=0.05), len(labels) // bs
    sched = OneCycleLR(opt, 0.01, epochs * steps, pct_start=0.2)
    views = [(flip, row, col) for flip in (0, 1) for row in range(3) for col in range(3)]

    def view(images, flip, row, col):
        images = images.flip(2) if flip else images
        return standardise(images[:, row : row + 28, col : col + 28])[:, None]

    cast = partial(torch.autocast, def_device, torch.bfloat16, enabled=def_device == "cuda")
    for _ in tqdm(range(epochs), "teacher"):
        for idx in torch.randperm(len(labels), device=def_device)[: steps * bs].split(bs):
            part = [  # each view gets its share of the batch
                view(images[i], *v) for i, v in zip(idx.tensor_split(18), views, strict=True)
            ]
            with cast():
                loss = F.cross_entropy(net(torch.cat(part)), labels[idx])
            loss.backward()
            opt.step()
            opt.zero_grad()
            sched.step()
    net.eval()
    with torch.no_grad(), cast():
        logits = [[net(view(x, *v)) for x in images.split(2000)] for v in views]
    return torch.stack([torch.cat(part) for part in logits]).half()


@call_parse
def main(
    what: str,  # helps or shapes
    n_train: int = 50_000,  # images to train on; fewer for a quick look, which isn't kept
    out: str = "",  # where the runs go; beside this script without it
):
    "Train what isn't there yet."
    path = Path(out) if out else Path(__file__).with_suffix(".jsonl")
    if what not in ("helps", "shapes"):
        sys.exit(f"side_by_side: {what!r} is neither helps nor shapes")
    images, labels = (t.to(def_device) for t in load_images("fashion_mnist", "train"))
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0)).to(def_device)
    ours, others = order[:n_train], order[50_000:]
    x, y = F.pad(images, (1, 1, 1, 1))[ours], labels[ours]
    teacher = torch.zeros(18, len(x), 10, device=def_device)
    if what == "helps":
        teacher = teach(x, y)
        wanted = [(s, {name: recipe | c}) for s in (large, small) for name, c in helps.items()]
    else:
        wanted = [(s, {"as it is": recipe}) for s in shapes]
    jobs = {}  # what can be trained side by side: one shape, as many epochs
    for shape, named in wanted:
        for name, config in named.items():
            for seed in range(seeds[what]):
                jobs.setdefault((config["epochs"], shape), []).append(
                    (name, config | {"seed": seed})
                )
    if any(r["what"] == what for r in common.read_runs(path)):
        sys.exit(f"side_by_side: {path.name} has them already")
    for epochs in sorted({e for e, _ in jobs}):
        todo = {s: j for (e, s), j in jobs.items() if e == epochs}
        groups = {s: Networks(s, [c for _, c in j], x, y, teacher) for s, j in todo.items()}
        train(list(groups.values()))
        for shape, group in groups.items():
            found = [
                group.judge(images[others], labels[others], averaged) for averaged in (False, True)
            ]
            for (name, config), acc, mean in zip(todo[shape], *found, strict=True):
                line = {
                    "what": what,
                    "shape": shape,
                    "numbers": numbers(shape),
                    "name": name,
                    **config,
                }
                common.add_run(path, line | {"accuracy": round(acc, 4), "averaged": round(mean, 4)})
