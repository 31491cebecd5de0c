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

from slowconv.puzzles import check, fill, find_trial, made_of, puzzles, try_once

folder = Path(__file__).parents[1] / "nbs" / "exercises"


def functions(pattern):
    "Name and source of each function that a cell of these notebooks begins with."
    cells = [c for p in sorted(folder.glob(pattern)) for c in read_nb(p).cells]
    found = [(re.match(r"def (\w+)\(", c.source), c.source.split("\n\n\n")[0]) for c in cells]
    return {name[1]: source for name, source in found if name}


sheets, solutions = functions("0*.ipynb"), functions("99_solutions.ipynb")
stubs = {k: v for k, v in sheets.items() if not k.endswith("_slow")}


@pytest.fixture
def made(tmp_path):
    "Makes a function from its source, in a file as in a cell, with the slow functions around it."
    space = {"torch": torch, "F": F, "nn": nn}
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
def test_a_stub_is_told_to_be_empty(name, made, capsys):
    assert check(*made(stubs[name])) is False
    assert "not filled in" in capsys.readouterr().out
    assert not plt.get_fignums()


# what people write: lines that come first, then several wrong results
sizes = "(h, w), (H, W) = kernel.shape, img.shape\n"
channels = "h, w = kernels.shape[1:]\nwindows = x.unfold(1, h, 1).unfold(2, w, 1)\nmaps = (windows * kernels[:, None, None]).sum((-2, -1))\n"
windows = "nf, ni, h, w = weight.shape\nwindows = x.unfold(1, h, 1).unfold(2, w, 1)\n"
strided = (
    "r, c = img.shape[0] - ks + 1, img.shape[1] - ks + 1\n(a, b), w = img.stride(), img.shape[1]\n"
)
loops = "(rows, cols), (h, w) = g.shape, kernel.shape\nout = torch.zeros((rows - 1) * stride + h, (cols - 1) * stride + w)\nfor r in range(rows):\n    for c in range(cols):\n        part = out[r * stride : r * stride + h, c * stride : c * stride + w]\n"
alive = "starts = range(-padding, n + padding - ks + 1, stride)\nalive = torch.tensor([any(0 <= s + t < n for s in starts) for t in range(ks)])\n"
wrong = {
    "right_edge": ["",
        "F.conv2d(img[None, None], torch.tensor([[[[-1.0, 0, 1]] * 3]]))[0, 0]",
        "F.conv2d(img[None, None], torch.tensor([[[[1.0, 0, -1]] * 3]]).mT)[0, 0]",
        "F.conv2d(img[None, None], torch.tensor([[[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]]]))[0, 0]"],
    "window_sum": ["h, w = kernel.shape\nwindow = img[row - h // 2 :, col - w // 2 :][:h, :w]\n",
        "(window * kernel).mean()", "(window * kernel.flip(0, 1)).sum()", "img[row, col] * kernel.sum()", "(window.relu() * kernel).sum()"],
    "output_size": ["rest = n + 2 * padding - ks\n",
        "(rest - padding) // stride + 1", "rest // stride", "-(-rest // stride) + 1", "(rest + 1) // stride", "round(rest / stride) + 1"],
    "dilated_size": ["rest = n + 2 * padding\n",
        "(rest - ks) // stride + 1", "(rest - dilation * ks) // stride + 1", "(rest - ks - dilation + 1) // stride + 1", "(rest - stride * (ks - 1) - 1) // stride + 1"],
    "im2col": ["rows, cols = range(img.shape[0] - ks + 1), range(img.shape[1] - ks + 1)\n",
        "torch.stack([img[r : r + ks, c : c + ks].T.flatten() for r in rows for c in cols])",
        "torch.stack([img[r : r + ks, c : c + ks].flatten() for c in cols for r in rows])",
        "torch.stack([img[r : r + ks, c : c + ks].flatten() for r in rows for c in cols], 1)",
        "torch.stack([img[r : r + ks, c : c + ks].flatten() for r in rows[::ks] for c in cols[::ks]])"],
    "conv_unfold": [sizes + "out = kernel.flatten() @ F.unfold(img[None, None], (h, w))[0]\n",
        "out.reshape(W - w + 1, H - h + 1).T", "out", "out.flip(0).reshape(H - h + 1, W - w + 1)", "out.relu().reshape(H - h + 1, W - w + 1)", "out.round().reshape(H - h + 1, W - w + 1)"],
    "conv_stride": [sizes + "full = (img.unfold(0, h, 1).unfold(1, w, 1) * kernel).sum((-2, -1))\n",
        "full", "full[::stride]", "full[stride - 1 :: stride, stride - 1 :: stride]", "full[: (H - h) // stride + 1, : (W - w) // stride + 1]"],
    "im2col_strided": [strided,
        "img.as_strided((r, c, ks, ks), (w, 1, w, 1)).reshape(r * c, ks * ks)", "img.as_strided((r, c, ks, ks), (a, b, b, a)).reshape(r * c, ks * ks)",
        "img.as_strided((r, c, ks, ks), img.stride() * 2, 0).reshape(r * c, ks * ks)", "img.as_strided((r, c, ks, ks), (a, b) * 2).reshape(ks * ks, r * c).T"],
    "conv_channels": [windows,
        "torch.einsum('crsij,ocij->ocrs', windows, weight)", "torch.einsum('crsij,ocij->ors', windows, weight) / ni", "torch.einsum('crsij,oij->ors', windows, weight[:, 0])",
        "torch.einsum('crsij,ocij->ors', windows, weight.flip(1))", "torch.einsum('crsij,ocij->ors', windows.relu(), weight)"],
    "same_padding": ["",
        "ks // 2", "dilation * (ks - 1)", "(dilation + ks - 1) // 2", "dilation * ks // 2"],
    "n_parameters": ["",
        "nf * ni * ks * ks", "nf * ni * ks * ks + 1", "nf * ni * ks * ks + ni", "nf * ni * (ks * ks + 1)", "nf * ks * ks + nf"],
    "accuracy": ["right = (logits.argmax(1) == labels).float()\nown = logits[range(len(labels)), labels]\n",
        "right.sum()", "1 - right.mean()", "100 * right.mean()", "logits.softmax(1)[range(len(labels)), labels].mean()", "(logits.softmax(1)[range(len(labels)), labels] > 0.5).float().mean()",
        "(own > 1).float().mean()", "(own == 2).float().mean()", "(logits[:, :3].argmax(1) == labels).float().mean()", "(logits.abs().argmax(1) == labels).float().mean()"],
    "sgd_step": ["step = lr * 2 * (x @ w - y) @ x / len(x)\n",
        "w + step", "w - step * len(x)", "w - step / 2", "w - step / lr", "-step"],
    "mean_loss": ["total = losses * sizes\n",
        "losses.mean()", "total.sum() / len(losses)", "losses.sum() / sizes.sum()", "total[:-1].sum() / sizes[:-1].sum()"],
    "field_size": ["field, late, jump = 1, 1, 1\nfor ks, stride in layers:\n    late = late + (ks - 1) * jump * stride\n    jump *= stride\n",
        "1 + sum(ks - 1 for ks, _ in layers)", "late", "jump", "sum(ks for ks, _ in layers)"],
    "dead_taps": [alive,
        "torch.zeros(ks, ks, dtype=torch.bool)", "~(alive[:, None] | alive)", "alive[:, None] & alive", "~(alive[:, None] & alive).flip(0)"],
    "conv_gradient": [loops,
        "        part[:] = g[r, c] * kernel\nreturn out", "        part += g[r, c] * kernel.flip(0, 1)\nreturn out", "        part += g[r, c].relu() * kernel\nreturn out", "        part += g[r, c] * kernel\nreturn out[: rows + h - 1, : cols + w - 1]"],
    "max_pool": ["rows, cols = img.shape[0] // ks, img.shape[1] // ks\nfull, windows = img[: rows * ks, : cols * ks], img.unfold(0, ks, ks).unfold(1, ks, ks)\n",
        "windows.mean((-2, -1))", "img.unfold(0, ks, 1).unfold(1, ks, 1).amax((-2, -1))", "windows.amax((-2, -1)).relu()", "windows.amax(-1)[..., 0]", "full.reshape(rows, cols, ks, ks).amax((-2, -1))", "windows.amax((-2, -1)).clamp(max=9)"],
    "depthwise": [channels,
        "maps.sum(0)", "(windows * kernels[0]).sum((-2, -1))", "(windows * kernels.flip(1, 2)[:, None, None]).sum((-2, -1))", "maps.flip(-1)"],
    "separable": [channels,
        "maps", "torch.einsum('oc,chw->ohw', mix.abs(), maps)", "torch.einsum('oc,chw->ochw', mix, maps)", "torch.einsum('oc,chw->ohw', mix, maps).relu()", "torch.einsum('co,chw->ohw', mix, maps)"],
    "multiplications": ["full, apart = ni * nf * ks * ks * h * w, (ni * ks * ks + ni * nf) * h * w\n",
        "(full, apart + (nf - ni * nf) * h * w)", "(full // ni, apart)", "(full, ni * nf * h * w)", "(ni * nf * ks * ks, ni * ks * ks + ni * nf)", "(apart, full)"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"), [(name, first + ("" if "return" in last else "return ") + last) for name, (first, *rest) in wrong.items() for last in rest]
)  # fmt: skip
def test_a_wrong_answer_is_drawn(name, text, made, capsys):
    assert check(*made(body(name, text))) is False
    said = capsys.readouterr().out
    assert said.startswith(f"{name} gave") and "A small input" in said
    (number,) = plt.get_fignums()
    figure = plt.figure(number)
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert any(t.startswith("wanted") for t in texts) and any(t.startswith("yours") for t in texts)
    assert max(figure.get_size_inches()) < 11
    assert {t for t in texts if re.fullmatch(r"-?[\d.]+|True|False", t)} - {"0"}


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("im2col", "pass", "gave None. Is there a `return`?"),
        ("im2col", "return [1, 2]", "gave a list of 2; a tensor of shape"),
        ("im2col", "return torch.zeros(7)", "gave a tensor of shape [7]; a tensor of shape"),
        ("im2col", "return torch.zeros(7, 7, 7, 7, 7)", "gave a tensor of shape [7, 7, 7, 7, 7]"),
        ("im2col", "return torch.zeros(2, 2, device='meta')", "gave a tensor of shape [2, 2]"),
        ("max_pool", "return img.max(1)", "gave a tuple of 2; a tensor of shape"),
        ("max_pool", "return img.unfold(0, ks, ks).unfold(1, ks, ks).amax((-2, -1)).double()", "gave numbers of torch.float64; torch.float32 was wanted"),
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
    (tmp_path / "takes_long.py").write_text("import time\ntime.sleep(0.6)\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = f"import takes_long\n{textwrap.dedent(solutions['max_pool'].split(':', 1)[1])}"
    assert check(*made(body("max_pool", text)), seconds=0.3) is True


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (body("conv_unfold", "return F.conv2d(img[None, None], kernel[None, None])[0, 0]"), "uses `conv2d` on line 2"),
        (body("conv_unfold", "return nn.Conv2d(1, 1, kernel.shape)(img[None])[0]"), "uses `Conv2d` on line 2"),
        (body("conv_unfold", "return conv_unfold_slow(img, kernel)"), "uses `conv_unfold_slow` on line 2"),
        (body("im2col", "return F.unfold(img[None, None], ks)[0].T"), "uses `unfold` on line 2"),
        (body("conv_unfold", "for r in range(3):\n    img = img + r\nreturn img"), "has a loop on line 2"),
        (body("conv_unfold", "return torch.stack([row for row in img])"), "has a loop on line 2"),
        (body("conv_unfold", "img = img + 1\nwhile img.sum() > 0:\n    img = img - 1\nreturn img"), "has a loop on line 3"),
        (body("conv_unfold", "return torch.stack(list(map(torch.sum, img)))"), "has a loop on line 2"),
        ("def add(img):\n    return sum(row for row in img)\n\n\n" + body("conv_unfold", "return add(img)"), "add has a loop on line 2"),
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


def test_an_answer_may_change_its_input_and_print(made, capsys):
    text = "print('called')\nimg *= 2\nreturn (img / 2).unfold(0, ks, ks).unfold(1, ks, ks).amax((-2, -1))"
    answer, slow = made(body("max_pool", text))
    trial = try_once(answer, slow, {"img": fill((2, 2), 0), "ks": 1}, 2)
    assert trial.problem is None and trial.printed == "called\n" and not capsys.readouterr().out
    assert torch.equal(trial.inputs["img"], fill((2, 2), 0))


def test_what_it_printed_is_shown_once(made, capsys):
    assert check(*made(body("same_padding", "print('ks is', ks)\nreturn 99"))) is False
    assert capsys.readouterr().out.endswith("What it printed there:\nks is 3\n")


def test_what_check_refuses(made):
    answer, slow = made(solutions["max_pool"])
    with pytest.raises(TypeError, match="no function"):
        check("max_pool", slow)
    with pytest.raises(ValueError, match="no puzzle is called '<lambda>'"):
        check(answer, lambda img, ks: img)
    for seconds in (math.nan, math.inf, 0, -1):
        with pytest.raises(ValueError, match="seconds="):
            check(answer, slow, seconds=seconds)


def test_the_smallest_input_is_small(made):
    answer, slow = made(body("output_size", "return (n + padding - ks) // stride + 1"))
    _, trial = find_trial(puzzles["output_size"].inputs, lambda i: try_once(answer, slow, i, 2))
    assert trial.inputs == {"n": 1, "ks": 3, "stride": 1, "padding": 1}


@pytest.mark.parametrize("seed", [0, 1, 2, 9999])
def test_numbers_are_distinct_and_exact(seed):
    t = fill((9, 9, 4), seed)
    assert len(t.unique()) == t.numel() and torch.equal(t * 4, (t * 4).round())
    assert (t.min() < 0) == (seed > 0)


def test_a_number_is_made_of_its_window(made):
    inputs = {"img": fill((5, 6), 2), "kernel": fill((2, 3), 3), "stride": 2}
    masks = made_of(made(stubs["conv_stride"])[1], inputs, (1, 1))
    assert masks["img"].nonzero().tolist() == [[r, c] for r in (2, 3) for c in (2, 3, 4)]
    assert masks["kernel"].all()


def test_two_layers_of_stride_2_see_seven_pixels_and_800_weights_are_dead(made):
    assert made(stubs["field_size"])[1]([(3, 2), (3, 2)]) == 7
    assert made(stubs["dead_taps"])[1](2, 3, 2, 1).sum() * 16 * 10 == 800
