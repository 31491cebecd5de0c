# ruff: noqa: E501
"The checker of puzzles: what people get wrong is caught and drawn, what is right passes in any style, nothing hangs."

import functools
import math
import re
import signal
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from fastcore.nbio import read_nb
from torch import nn

from slowconv import puzzles as module
from slowconv.puzzles import Draw, check, count, made_of, puzzles, try_many, try_once

folder = Path(__file__).parents[1] / "nbs" / "exercises"


def functions(pattern):
    "Name and source of each function that a cell of these notebooks begins with."
    cells = [c for p in sorted(folder.glob(pattern)) for c in read_nb(p).cells]
    found = [(re.match(r"def (\w+)\(", c.source), c.source.split("\n\n\n")[0]) for c in cells]
    return {name[1]: source for name, source in found if name}


sheets, solutions = functions("[01]*.ipynb"), functions("99_solutions.ipynb")
hints, last = {}, ""
for path in sorted(folder.glob("[01]*.ipynb")):
    for cell in read_nb(path).cells:
        name = re.match(r"def (\w+)\(", cell.source)
        last = name[1] if name else last
        hints |= {last: cell.source} if "```python" in cell.source else {}
stubs = {k: v for k, v in sheets.items() if not k.endswith("_slow")}


@pytest.fixture(autouse=True)
def figures_stay_open(monkeypatch):
    monkeypatch.setattr(module, "alt", lambda text: text)


@pytest.fixture
def made(tmp_path):
    "Makes a function from its source, in a file as in a cell, with the slow functions around it."
    space = {"torch": torch, "F": F, "nn": nn, "math": math}
    for source in sheets.values():
        exec(source, space)

    def make(source):
        path = tmp_path / "cell.py"
        path.write_text(source)
        exec(compile(source, path, "exec"), space)
        name = re.findall(r"^def (\w+)\(", source, re.M)[-1]
        return space[name], space[f"{name}_slow"]

    return make


def body(name, text):
    "The stub with another body."
    return f"{stubs[name].splitlines()[0]}\n{textwrap.indent(text, '    ')}\n"


def test_each_puzzle_has_a_slow_function_a_stub_and_a_solution():
    assert list(puzzles) == list(stubs) == list(solutions) == list(wrong)
    assert set(sheets) == {*stubs, *(f"{k}_slow" for k in stubs)}
    assert min(len(rest) for _, *rest in wrong.values()) >= 3


@pytest.mark.parametrize("name", puzzles)
def test_a_stub_is_told_to_be_empty_or_is_wrong(name, made, capsys):
    assert check(*made(stubs[name])) is False
    said = capsys.readouterr().out
    assert ("gave 13; 14 was wanted" if name == "repaired" else "not filled in") in said
    assert len(plt.get_fignums()) == (name == "repaired")


@pytest.mark.parametrize("name", puzzles)
def test_the_lines_in_the_wrong_order_are_those_of_the_solution(name):
    lines = re.search(r"```python\n(.*)\n```", hints[name], re.S)[1].splitlines()
    right = textwrap.dedent(solutions[name].split("\n", 1)[1]).splitlines()
    assert sorted(lines) == sorted(right) and lines != right


# what people write: lines that come first, then several wrong results
sizes = "(h, w), (H, W) = kernel.shape, img.shape\n"
channels = "h, w = kernels.shape[1:]\nwindows = x.unfold(1, h, 1).unfold(2, w, 1)\nmaps = (windows * kernels[:, None, None]).sum((-2, -1))\n"
windows = "nf, ni, h, w = weight.shape\nwindows = x.unfold(1, h, 1).unfold(2, w, 1)\n"
layer = "h, w = weight.shape[2:]\nb = bias[:, None, None]\np = F.pad(x, (padding,) * 4)\nwindows = p.unfold(2, h, stride).unfold(3, w, stride)\nmaps = torch.einsum('ncrsij,ocij->nors', windows, weight)\n"
strided = (
    "r, c = img.shape[0] - ks + 1, img.shape[1] - ks + 1\n(a, b), w = img.stride(), img.shape[1]\n"
)
loops = "(rows, cols), (h, w) = g.shape, kernel.shape\nout = torch.zeros((rows - 1) * stride + h, (cols - 1) * stride + w)\nfor r in range(rows):\n    for c in range(cols):\n        part = out[r * stride : r * stride + h, c * stride : c * stride + w]\n"
alive = "starts = range(-padding, n + padding - ks + 1, stride)\nplaces = torch.tensor(starts)[:, None] + torch.arange(ks)\nalive = ((0 <= places) & (places < n)).any(0)\n"
norm = "m, v = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)\nm, v = (m, v) if training else (mean, var)\nm, v, own = m[:, None, None], v[:, None, None], x.mean((2, 3), keepdim=True)\n"
dw = "h, w = size\np = F.pad(x, (padding,) * 4)\nwindows = p.unfold(2, h, stride).unfold(3, w, stride)\nout = torch.einsum('norc,nircjk->oijk', gy, windows)\n"
back = "(H, W), k = size, weight.shape[2:]\nout = torch.zeros(len(gy), weight.shape[1], H + 2 * padding, W + 2 * padding)\nfor r in range(gy.shape[2]):\n    for c in range(gy.shape[3]):\n        part = out[:, :, r * stride :, c * stride :][:, :, : k[0], : k[1]]\n        share = torch.einsum('no,oijk->nijk', gy[:, :, r, c], weight)\n"
pool = "r, c = gy.shape\nw = img.unfold(0, ks, ks).unfold(1, ks, ks).flatten(2)\nbig = gy.repeat_interleave(ks, 0).repeat_interleave(ks, 1)\ntop = w.amax(2).repeat_interleave(ks, 0).repeat_interleave(ks, 1)\nout, hit = torch.zeros(img.shape), img[: r * ks, : c * ks] == top\n"
wrong = {
    "right_edge": ["",
        "F.conv2d(img[None, None], torch.tensor([[[[-1.0, 0, 1]] * 3]]))[0, 0]", "F.conv2d(img[None, None], torch.tensor([[[[1.0, 0, -1]] * 3]]).mT)[0, 0]", "F.conv2d(img[None, None], torch.tensor([[[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]]]))[0, 0]"],
    "window_sum": ["h, w = kernel.shape\nwindow = img[row - h // 2 :, col - w // 2 :][:h, :w]\n",
        "(window * kernel.flip(0, 1)).sum()", "img[row, col] * kernel.sum()", "(window.relu() * kernel).sum()"],
    "output_size": ["rest = n + 2 * padding - ks\n",
        "rest // stride", "-(-rest // stride) + 1", "round(rest / stride) + 1"],
    "true_conv": ["k = kernel[None, None]\nout = F.conv2d(img[None, None], k)[0, 0]\n",
        "out", "out.flip(0, 1)", "F.conv2d(img[None, None], k.flip(2))[0, 0]"],
    "telling_image": ["h, w = kernel.shape\nimg = torch.zeros(2 * h - 1, 2 * w - 1)\n",
        "torch.ones(h, w)", "img.index_fill(0, torch.tensor(0), 1)", "F.pad(torch.ones(1, 1), (0, w - 1, 0, h - 1))"],
    "im2col": ["rows, cols = range(img.shape[0] - ks + 1), range(img.shape[1] - ks + 1)\n",
        "torch.stack([img[r : r + ks, c : c + ks].T.flatten() for r in rows for c in cols])", "torch.stack([img[r : r + ks, c : c + ks].flatten() for c in cols for r in rows])", "torch.stack([img[r : r + ks, c : c + ks].flatten() for r in rows for c in cols], 1)", "torch.stack([img[r : r + ks, c : c + ks].flatten() for r in rows[::ks] for c in cols[::ks]])"],
    "conv_unfold": [sizes + "out = kernel.flatten() @ F.unfold(img[None, None], (h, w))[0]\n",
        "out.reshape(W - w + 1, H - h + 1).T", "out.relu().reshape(H - h + 1, W - w + 1)", "out.round().reshape(H - h + 1, W - w + 1)"],
    "im2col_strided": [strided,
        "img.as_strided((r, c, ks, ks), (w, 1, w, 1)).reshape(r * c, ks * ks)", "img.as_strided((r, c, ks, ks), (a, b, b, a)).reshape(r * c, ks * ks)", "img.as_strided((r, c, ks, ks), img.stride() * 2, 0).reshape(r * c, ks * ks)"],
    "n_parameters": ["",
        "nf * ni * ks * ks", "nf * ni * ks * ks + 1", "nf * ni * ks * ks + ni"],
    "same_padding": ["",
        "ks // 2", "dilation * (ks - 1)", "(dilation + ks - 1) // 2"],
    "conv_channels": [windows,
        "torch.einsum('crsij,ocij->ocrs', windows, weight)", "torch.einsum('crsij,oij->ors', windows, weight[:, 0])", "torch.einsum('crsij,ocij->ors', windows, weight.flip(1))", "torch.einsum('crsij,ocij->ors', windows.relu(), weight)"],
    "whole_layer": [layer,
        "maps + bias[0]", "maps.sum(0, keepdim=True) + b", "maps.flip(0) + b", "torch.einsum('ncrsij,ocij->nors', F.pad(x, (padding, padding, 0, 0)).unfold(2, h, stride).unfold(3, w, stride), weight) + b"],
    "accuracy": ["right = (logits.argmax(1) == labels).float()\nown = logits[range(len(labels)), labels]\n",
        "logits.softmax(1)[range(len(labels)), labels].mean()", "(logits.softmax(1)[range(len(labels)), labels] > 0.5).float().mean()", "(own > 1).float().mean()", "(logits.abs().argmax(1) == labels).float().mean()"],
    "mean_loss": ["total = losses * sizes\n",
        "losses.mean()", "total.sum() / len(losses)", "losses.sum() / sizes.sum()"],
    "sgd_step": ["step = lr * 2 * (x @ w - y) @ x / len(x)\n",
        "w + step", "w - step * len(x)", "w - step / 2"],
    "cross_entropy": ["n = torch.arange(len(labels))\nlog = logits.double().softmax(1)[n, labels].log().float()\n",
        "-logits.softmax(1)[n, labels].log().mean()", "(logits.exp().sum(1).log() - logits[n, labels]).mean()", "-logits.softmax(1)[n, labels].clamp(1e-7).log().mean()", "log.mean()"],
    "field_size": ["field, late, jump = 1, 1, 1\nfor ks, stride in layers:\n    late = late + (ks - 1) * jump * stride\n    jump *= stride\n",
        "late", "jump", "1 + len(layers) * (ks - 1)"],
    "field_window": ["size, start, jump, pads = 1, 0, 1, 0\nfor ks, stride, padding, dilation in layers:\n    size, start, pads = size + dilation * (ks - 1) * jump, start - padding * jump, pads + padding\n    jump *= stride\n",
        "size, -pads", "size - 2 * pads, start", "size, start + jump"],
    "safe_shift": ["product = math.prod(strides)\n",
        "sum(strides)", "max(strides)", "math.lcm(*strides)"],
    "dead_taps": [alive,
        "torch.zeros(ks, ks, dtype=torch.bool)", "~(alive[:, None] | alive)", "alive[:, None] & alive", "~(alive[:, None] & alive).flip(0)"],
    "start_std": ["n = ni * ks * ks\n",
        "1 / n**0.5", "(2 / ni) ** 0.5", "(2 / (ni * ks)) ** 0.5"],
    "batch_norm": [norm,
        "(x - own) / (v + 1e-5).sqrt()", "(x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()", "(x - x.mean((0, 2, 3), keepdim=True)) / (v + 1e-5).sqrt()"],
    "running_var": ["v = x.var((0, 2, 3))\n",
        "0.1 * var + 0.9 * v", "0.9 * var + 0.1 * x.var((0, 2, 3), correction=0)", "0.9 * var + 0.1 * x.var((2, 3)).mean(0)"],
    "shift_add": [sizes + "out = torch.zeros(H - h + 1, W - w + 1)\nfor i in range(h):\n    for j in range(w):\n        part = img[i : i + H - h + 1, j : j + W - w + 1]\n",
        "        out += kernel[h - 1 - i, w - 1 - j] * part\nreturn out", "        out = kernel[i, j] * part\nreturn out", "        out += kernel[i, 0] * part\nreturn out", "        out += kernel[i, j] * part\nreturn out / (h * w)"],
    "conv_matrix": ["h, w = kernel.shape\nout = torch.zeros(rows - h + 1, cols - w + 1, rows, cols)\nfor r in range(rows - h + 1):\n    for c in range(cols - w + 1):\n        part = out[r, c, r : r + h, c : c + w]\n",
        "        part[:] = kernel.flip(0, 1)\nreturn out.reshape(-1, rows * cols)", "        part[:] = kernel\nreturn out.reshape(-1, rows * cols).T", "        part[:] = kernel\nreturn out", "        out[r, c, :h, :w] = kernel\nreturn out.reshape(-1, rows * cols)"],
    "max_pool": ["rows, cols = img.shape[0] // ks, img.shape[1] // ks\nfull, windows = img[: rows * ks, : cols * ks], img.unfold(0, ks, ks).unfold(1, ks, ks)\n",
        "img.unfold(0, ks, 1).unfold(1, ks, 1).amax((-2, -1))", "windows.amax((-2, -1)).relu()", "full.reshape(rows, cols, ks, ks).amax((-2, -1))"],
    "causal": ["d = dilation * (len(kernel) - 1)\nconv = lambda *p: F.conv1d(F.pad(x, p)[None, None], kernel[None, None], dilation=dilation)[0, 0]\n",
        "conv(0, d)", "conv(d // 2, d - d // 2)", "F.conv1d(F.pad(x, (d, 0))[None, None], kernel.flip(0)[None, None], dilation=dilation)[0, 0]"],
    "conv_dilated": [sizes + "full = img.unfold(0, h, 1).unfold(1, w, 1)\nlong = img.unfold(0, dilation * (h - 1) + 1, 1).unfold(1, dilation * (w - 1) + 1, 1)\nout = (long[:, :, ::dilation, ::dilation] * kernel).sum((2, 3))\n",
        "(full * kernel).sum((2, 3))", "(full * kernel).sum((2, 3))[::dilation, ::dilation]", "(long[:, :, :h, :w] * kernel).sum((2, 3))"],
    "separable": [channels,
        "torch.einsum('oc,chw->ohw', mix.abs(), maps)", "torch.einsum('oc,chw->ohw', mix, maps).relu()", "torch.einsum('co,chw->ohw', mix, maps)"],
    "multiplications": ["full, apart = ni * nf * ks * ks * h * w, (ni * ks * ks + ni * nf) * h * w\n",
        "(full, apart + (nf - ni * nf) * h * w)", "(full // ni, apart)", "(apart, full)"],
    "conv_gradient": [loops,
        "        part[:] = g[r, c] * kernel\nreturn out", "        part += g[r, c] * kernel.flip(0, 1)\nreturn out", "        part += g[r, c].relu() * kernel\nreturn out", "        part += g[r, c] * kernel\nreturn out[: rows + h - 1, : cols + w - 1]"],
    "transposed": [loops + "        part += g[r, c] * kernel\n",
        "F.pad(out, (padding,) * 4)", "out[: len(out) - 2 * padding, : out.shape[1] - 2 * padding]", "out[padding:-padding, padding:-padding]"],
    "relu_gradient": ["",
        "gy", "gy * (x >= 0)", "gy.relu()"],
    "bias_gradient": ["",
        "gy.sum((2, 3))", "gy.mean((0, 2, 3))", "gy[0].sum((1, 2))"],
    "entropy_gradient": ["p, t = logits.softmax(1), F.one_hot(labels, logits.shape[1])\n",
        "(p - t)", "(t - p) / len(labels)", "(logits - t) / len(labels)"],
    "weight_gradient": [dw,
        "out.flip(2, 3)", "out.transpose(0, 1)", "torch.einsum('norc,nircjk->oijk', gy, p.unfold(2, h, 1).unfold(3, w, 1)[:, :, : gy.shape[2], : gy.shape[3]])", "torch.einsum('norc,nircjk->oijk', gy, F.pad(x, (0, 2 * padding) * 2).unfold(2, h, stride).unfold(3, w, stride))"],
    "image_gradient": [back,
        "        part += share.flip(2, 3)\nreturn out[:, :, padding : padding + H, padding : padding + W]", "        part[:] = share\nreturn out[:, :, padding : padding + H, padding : padding + W]", "        part += share\nreturn out[:, :, :H, :W]"],
    "pool_gradient": [pool,
        "F.pad(big * hit, (0, img.shape[1] - c * ks, 0, img.shape[0] - r * ks))", "big * hit", "F.pad(big, (0, img.shape[1] - c * ks, 0, img.shape[0] - r * ks))", "F.pad(big / ks**2, (0, img.shape[1] - c * ks, 0, img.shape[0] - r * ks))"],
    "repaired": [windows,
        "torch.einsum('csrij,ocij->ors', windows, weight)", "torch.einsum('crsij,ocij->ors', windows, weight.flip(2))", "torch.einsum('crsij,ocij->ors', windows, weight) / nf"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"), [(name, first + ("" if "return" in last else "return ") + last) for name, (first, *rest) in wrong.items() for last in rest]
)  # fmt: skip
def test_a_wrong_answer_is_drawn(name, text, made, capsys):
    assert check(*made(body(name, text))) is False
    said = capsys.readouterr().out
    assert said.startswith(f"{name} ") and "A small input" in said
    (number,) = plt.get_fignums()
    figure = plt.figure(number)
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert any(t.startswith("yours") for t in texts)
    assert puzzles[name].judged or any(t.startswith("wanted") for t in texts)
    assert max(figure.get_size_inches()) < 11
    assert {t for t in texts if re.fullmatch(r"-?[\d.]+|True|False", t)} - {"0"}


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("im2col", "pass", "gave None. Is there a `return`?"),
        ("im2col", "return [1, 2]", "gave a list of 2; a tensor of shape"),
        ("im2col", "return torch.zeros(7)", "gave a tensor of shape [7]; a tensor of shape"),
        ("im2col", "return torch.zeros(7, 7, 7, 7, 7)", "gave a tensor of shape [7, 7, 7, 7, 7]"),
        ("im2col", "return torch.zeros(2, 2, device='meta')", "on meta; a tensor of shape"),
        ("max_pool", "return img.max(1)", "gave a tuple of 2; a tensor of shape"),
        ("max_pool", "return img.unfold(0, ks, ks).unfold(1, ks, ks).amax((-2, -1)).double()", "gave numbers of torch.float64; floats (torch.float32) were wanted"),
        ("max_pool", "return torch.full((img.shape[0] // ks, img.shape[1] // ks), -torch.inf)", "gave -inf"),
        ("max_pool", "return img.unfold(0, ks, ks).unfold(1, ks, ks).amax((-2, -1)) + torch.rand(1).round()", "now this, now that"),
        ("output_size", "return (n + 2 * padding - ks) / stride + 1", "whole numbers were wanted"),
        ("output_size", "return 'five'", "gave str 'five'; a number was wanted"),
        ("output_size", "return True", "gave bool True"),
        ("output_size", "return 10**400", "a number was wanted"),
        ("multiplications", "return 1", "a tuple of 2 numbers was wanted"),
        ("window_sum", "return img[99, 99]", "stopped on line 2, `return img[99, 99]`\nIndexError"),
        ("window_sum", "return imgg", "NameError"),
        ("window_sum", "raise SystemExit", "SystemExit"),
    ],
)  # fmt: skip
def test_what_is_no_answer_gets_a_line(name, text, line, made, capsys):
    assert check(*made(body(name, text))) is False
    assert line in capsys.readouterr().out
    assert plt.get_fignums()


@pytest.mark.parametrize(
    ("name", "text", "line", "drawn"),
    [
        ("telling_image", "return torch.eye(3)[:2, :2] * 1", "2 pixels that aren't 0; one was asked for", ["correlation", "true convolution"]),
        ("telling_image", "return F.pad(torch.ones(1, 1), (0, kernel.shape[1] - 1, 0, len(kernel) - 1))", "both maps are the same", ["correlation", "true convolution"]),
        ("telling_image", "pass", "gave NoneType None", []),
        ("relu_gradient", "return x > 0", "gave bools; floats (torch.float32) were wanted", ["wanted"]),
        ("im2col", "return torch.zeros(0)", "gave a tensor of shape [0]", ["empty"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_drawn(name, text, line, drawn, made, capsys):
    assert check(*made(body(name, text))) is False
    assert line in capsys.readouterr().out
    assert set(drawn) <= {t.get_text() for t in plt.gca().texts}


def test_the_frame_is_on_a_number_that_is_not_0(made):
    slow, inputs = made(stubs["relu_gradient"])[1], {"x": torch.tensor([1.0, 0]), "gy": count(2)}
    gives = slow(**inputs)
    trial = module.Trial(inputs, gives, gives)
    window, masks = module.find_windows(slow, trial, gives, gives)
    assert [m.tolist() for m in (window, masks["x"].bool(), masks["gy"].bool())] == [[1, 0]] * 3


def test_wrong_arguments_get_a_line(made, capsys):
    assert check(*made("def window_sum(img):\n    return img.sum()\n")) is False
    assert "could not be called. TypeError" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the alarm needs Unix")
@pytest.mark.parametrize(
    "text",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "while True:\n    try:\n        layers = 1\n    except Exception:\n        pass",
    ],
)
def test_what_never_ends_is_ended(text, made, capsys):
    before = signal.getsignal(signal.SIGALRM)
    assert check(*made(body("field_size", text)), seconds=0.3) is False
    assert "still running after 0.3 seconds on line" in capsys.readouterr().out
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == before


def test_an_import_may_take_its_time(made, tmp_path, monkeypatch):
    (tmp_path / "takes_long.py").write_text("import time\ntime.sleep(3.5)\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = f"import takes_long\n{textwrap.dedent(solutions['max_pool'].split(':', 1)[1])}"
    assert check(*made(body("max_pool", text)), seconds=3) is True


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (body("conv_unfold", "return F.conv2d(img[None, None], kernel[None, None])[0, 0]"), "uses `conv2d` on line 2"),
        (body("conv_unfold", "return nn.Conv2d(1, 1, kernel.shape)(img[None])[0]"), "uses `Conv2d` on line 2"),
        (body("conv_unfold", "return conv_unfold_slow(img, kernel)"), "uses `conv_unfold_slow` on line 2"),
        (body("im2col", "return F.unfold(img[None, None], ks)[0].T"), "uses `unfold` on line 2"),
        (body("conv_unfold", "for r in range(3):\n    img = img + r\nreturn img"), "has a loop too many, on line 2;"),
        (body("conv_unfold", "return torch.stack([row for row in img])"), "has a loop too many, on line 2;"),
        (body("conv_unfold", "img = img + 1\nwhile img.sum() > 0:\n    img = img - 1\nreturn img"), "has a loop too many, on line 3;"),
        (body("conv_unfold", "return torch.stack(list(map(torch.sum, img)))"), "has a loop too many, on line 2;"),
        ("def add(img):\n    return sum(row for row in img)\n\n\n" + body("conv_unfold", "return add(img)"), "has a loop too many, on line 2 of add"),
    ],
)  # fmt: skip
def test_what_a_puzzle_bans_is_found(source, line, made, capsys):
    assert check(*made(source)) is False
    assert line in capsys.readouterr().out
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    "answer",
    [
        lambda img, ks: img.unfold(0, ks, ks).unfold(1, ks, ks).amax((-2, -1)),
        functools.partial(lambda dims, img, ks: img.unfold(0, ks, ks).unfold(1, ks, ks).amax(dims), (2, 3)),
        torch.no_grad()(lambda img, ks: img.unfold(0, ks, ks).unfold(1, ks, ks).flatten(2).amax(2)),
        lambda image, size: torch.tensor(img := image[: len(image) // size * size, : image.shape[1] // size * size].numpy()).reshape(len(img) // size, size, -1, size).amax((1, 3)),
    ],
)  # fmt: skip
def test_a_right_answer_in_another_style(answer, made):
    assert check(answer, made(solutions["max_pool"])[1]) is True


def test_an_answer_may_change_its_input_print_warn_and_draw(made, capsys):
    text = "print('called')\nwarnings.warn('!')\nplt.figure()\nimg *= 2\nreturn (img / 2).unfold(0, ks, ks).unfold(1, ks, ks).amax((-2, -1))"
    answer, slow = made(
        "import warnings\nimport matplotlib.pyplot as plt\n" + body("max_pool", text)
    )
    assert check(answer, slow) is True and len(plt.get_fignums()) == 1
    said = capsys.readouterr()
    assert "It changes its input" in said.out and "called" not in said.out and not said.err
    trial = try_once(answer, slow, puzzles["max_pool"], {"img": count(2, 2), "ks": 1})
    assert trial.problem is None and trial.printed == "called\n"
    assert torch.equal(trial.inputs["img"], count(2, 2))


def test_what_it_printed_is_shown_once(made, capsys):
    assert check(*made(body("same_padding", "print('ks is', ks)\nreturn 99"))) is False
    assert "What it printed there:\nks is 1\n" in capsys.readouterr().out


def test_what_check_needs(made, capsys):
    answer, slow = made(solutions["max_pool"])
    for wrong_call in (
        ("max_pool", slow),
        (answer, lambda img, ks: img),
        (answer, "max_pol"),
        (answer, 3),
    ):
        assert check(*wrong_call) is False
        assert "check needs your function and the slow one" in capsys.readouterr().out
    globals()["max_pool_slow"] = slow
    assert check(lambda img, ks: answer(img, ks), "max_pool") is True


@pytest.mark.parametrize(
    "name", ["im2col", "field_size", "dead_taps", "conv_gradient", "pool_gradient", "conv_matrix"]
)
def test_the_slow_function_is_no_answer(name, made, capsys):
    assert check(*made(sheets[f"{name}_slow"].replace("_slow", "", 1))) is False
    assert "asks for" in capsys.readouterr().out


def test_the_smallest_input_is_small(made):
    answer, slow = made(body("output_size", "return (n + padding - ks) // stride + 1"))
    trials = try_many(answer, slow, puzzles["output_size"], 10)
    assert trials[-1].inputs == {"n": 1, "ks": 1, "stride": 1, "padding": 1}


@pytest.mark.parametrize("level", [1, 2, 5])
def test_numbers_are_distinct(level):
    draw = Draw(level)
    draw.level = level
    t = torch.stack([draw.numbers(9, 9, 4) for _ in range(9)])
    assert all(len(a.unique()) == a.numel() for a in t) and (t < 0).any()
    assert torch.equal(t, t.round()) == (level < 3)


def test_a_number_is_made_of_its_window(made):
    inputs = {"img": count(5, 6), "kernel": count(2, 3), "dilation": 2}
    masks = made_of(made(stubs["conv_dilated"])[1], inputs, (1, 1))
    assert masks["img"].nonzero().tolist() == [[r, c] for r in (1, 3) for c in (1, 3, 5)]
    assert masks["kernel"].all()


def test_two_layers_of_stride_2_see_seven_pixels_and_800_weights_are_dead(made):
    assert made(stubs["field_size"])[1]([(3, 2), (3, 2)]) == 7
    assert made(stubs["dead_taps"])[1](2, 3, 2, 1).sum() * 16 * 10 == 800
