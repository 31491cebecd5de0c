# ruff: noqa: E501
"The puzzles: stubs fail, solutions pass, and what people get wrong is drawn."

import re
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from fastcore.nbio import read_nb

from slowconv import exercises
from slowconv.exercises import check, hint, puzzles, spec

nbs = Path(__file__).parents[1] / "nbs" / "exercises"


def codes(path):
    return [c.source for c in read_nb(path).cells if c.cell_type == "code"]


def answers(path):
    "Name and source of each function that a notebook has checked."
    found = {}
    for code in codes(path):
        if defined := re.match(r"def (\w+)\(", code):
            found[defined[1]] = code.split("\n\n\n")[0]
    return found


stubs = {k: v for p in nbs.glob("0*.ipynb") for k, v in answers(p).items()}
solutions = answers(nbs / "99_solutions.ipynb")


def made(source, tmp_path):
    "The function of a source, which stands in a file as a cell's does."
    path = tmp_path / "cell.py"
    path.write_text(source)
    space = {"torch": torch, "F": F}
    exec(compile(source, path, "exec"), space)
    return next(f for k, f in space.items() if k in puzzles)


def test_each_puzzle_has_a_stub_and_a_solution():
    assert len(puzzles) >= 18
    assert set(stubs) == set(solutions) == set(puzzles) == set(wrong)


@pytest.mark.parametrize("name", puzzles)
def test_a_stub_fails(name, tmp_path, capsys):
    assert check(made(stubs[name], tmp_path)) is False
    assert "not filled in" in capsys.readouterr().out
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", puzzles)
def test_a_solution_passes(name, tmp_path, capsys):
    assert check(made(solutions[name], tmp_path)) is True
    said = capsys.readouterr().out
    assert said.startswith("Right") and puzzles[name].notice in said
    assert not plt.get_fignums()


# the arguments as in the stub; each entry is the body of a function that people might write
wrong = {
    "window_sum": [
        "h, w = kernel.shape\nreturn (img[row : row + h, col : col + w] * kernel[: len(img) - row, : img.shape[1] - col]).sum()",
        "h, w = kernel.shape\nreturn (img[row - h // 2 :, col - w // 2 :][:h, :w] * kernel).mean()",
        "h, w = kernel.shape\nreturn (img[row - h // 2 :, col - w // 2 :][:h, :w] * kernel.flip(0, 1)).sum()",
        "return img[row, col] * kernel.sum()",
    ],
    "right_edge": [
        "return torch.tensor([[-1.0, 0, 1]] * 3)",
        "return torch.tensor([[1.0, 0, -1]] * 3).T",
        "return torch.tensor([[1.0, 1, -1]] * 3)",
    ],
    "output_size": [
        "return (n + padding - ks) // stride + 1",
        "return (n + 2 * padding - ks) // stride",
        "return -(-(n + 2 * padding - ks) // stride) + 1",
        "return (n + 2 * padding) // stride",
    ],
    "dilated_size": [
        "return (n + 2 * padding - ks) // stride + 1",
        "return (n + 2 * padding - dilation * ks) // stride + 1",
        "return (n + 2 * padding - (ks + dilation - 1)) // stride + 1",
    ],
    "im2col": [
        "rows, cols = range(img.shape[0] - ks + 1), range(img.shape[1] - ks + 1)\nreturn torch.stack([img[r : r + ks, c : c + ks].T.flatten() for r in rows for c in cols])",
        "rows, cols = range(img.shape[0] - ks + 1), range(img.shape[1] - ks + 1)\nreturn torch.stack([img[r : r + ks, c : c + ks].flatten() for c in cols for r in rows])",
        "rows, cols = range(img.shape[0] - ks), range(img.shape[1] - ks)\nreturn torch.stack([img[r : r + ks, c : c + ks].flatten() for r in rows for c in cols] or [img[0]])",
        "rows, cols = range(img.shape[0] - ks + 1), range(img.shape[1] - ks + 1)\nreturn torch.stack([img[r : r + ks, c : c + ks].flatten() for r in rows for c in cols], 1)",
    ],
    "im2col_strided": [
        "rows, cols = img.shape[0] - ks + 1, img.shape[1] - ks + 1\nw = img.shape[1]\nreturn img.as_strided((rows, cols, ks, ks), (w, 1, w, 1)).reshape(rows * cols, ks * ks)",
        "rows, cols = img.shape[0] - ks + 1, img.shape[1] - ks + 1\na, b = img.stride()\nreturn img.as_strided((rows, cols, ks, ks), (a, b, b, a)).reshape(rows * cols, ks * ks)",
        "rows, cols = img.shape[0] - ks + 1, img.shape[1] - ks + 1\nreturn img.as_strided((rows, cols, ks, ks), img.stride() * 2).reshape(ks * ks, rows * cols).T",
    ],
    "conv_unfold": [
        "rows, cols = img.shape[0] - kernel.shape[0] + 1, img.shape[1] - kernel.shape[1] + 1\nreturn (kernel.flatten() @ F.unfold(img[None, None], kernel.shape)[0]).reshape(cols, rows).T",
        "rows, cols = img.shape[0] - kernel.shape[0] + 1, img.shape[1] - kernel.shape[1] + 1\nreturn (kernel.T.flatten() @ F.unfold(img[None, None], kernel.shape)[0]).reshape(rows, cols)",
        "return kernel.flatten() @ F.unfold(img[None, None], kernel.shape)[0]",
        "rows, cols = img.shape[0] - kernel.shape[0] + 1, img.shape[1] - kernel.shape[1] + 1\nreturn (kernel.flip(0, 1).flatten() @ F.unfold(img[None, None], kernel.shape)[0]).reshape(rows, cols)",
    ],
    "conv_stride": [
        "h, w = kernel.shape\nreturn (img.unfold(0, h, 1).unfold(1, w, 1) * kernel).sum((-2, -1))",
        "h, w = kernel.shape\nreturn (img.unfold(0, h, 1).unfold(1, w, 1) * kernel).sum((-2, -1))[::stride]",
        "h, w = kernel.shape\nreturn (img.unfold(0, h, 1).unfold(1, w, 1) * kernel).sum((-2, -1))[stride - 1 :: stride, stride - 1 :: stride]",
    ],
    "conv_channels": [
        'nf, ni, h, w = weight.shape\nreturn torch.einsum("crsij,ocij->ocrs", x.unfold(1, h, 1).unfold(2, w, 1), weight)',
        'nf, ni, h, w = weight.shape\nreturn torch.einsum("crsij,ocij->ors", x.unfold(1, h, 1).unfold(2, w, 1), weight) / ni',
        'nf, ni, h, w = weight.shape\nreturn torch.einsum("crsij,oij->ors", x.unfold(1, h, 1).unfold(2, w, 1), weight[:, 0])',
        'nf, ni, h, w = weight.shape\nreturn torch.einsum("rsij,oij->ors", x[0].unfold(0, h, 1).unfold(1, w, 1), weight[:, 0])',
    ],
    "same_padding": [
        "return ks // 2",
        "return dilation * (ks - 1)",
        "return (dilation + ks - 1) // 2",
        "return dilation * ks // 2",
    ],
    "n_parameters": [
        "return nf * ni * ks * ks",
        "return nf * ni * ks * ks + 1",
        "return nf * ni * (ks * ks + 1)",
        "return nf * ks * ks + nf",
    ],
    "accuracy": [
        "return (logits.argmax(1) == labels).float().sum()",
        "return (logits.argmin(1) == labels).float().mean()",
        "return (logits.argmax(1) != labels).float().mean()",
        "return logits.softmax(1)[range(len(labels)), labels].mean()",
    ],
    "sgd_step": [
        "return w + lr * 2 * (x @ w - y) @ x / len(x)",
        "return w - lr * 2 * (x @ w - y) @ x",
        "return w - lr * (x @ w - y) @ x / len(x)",
        "return w - 2 * (x @ w - y) @ x / len(x)",
    ],
    "mean_loss": [
        "return losses.mean()",
        "return (losses * sizes).sum() / len(losses)",
        "return (losses * sizes).mean()",
        "return losses.sum() / sizes.sum()",
    ],
    "field_size": [
        "field = 1\nfor ks, stride in layers:\n    field = field + (ks - 1)\nreturn field",
        "field, jump = 1, 1\nfor ks, stride in layers:\n    jump *= stride\n    field = field + (ks - 1) * jump\nreturn field",
        "product = 1\nfor ks, stride in layers:\n    product *= stride\nreturn product",
        "return sum(ks for ks, stride in layers)",
    ],
    "dead_taps": [
        "return torch.zeros(ks, ks, dtype=torch.bool)",
        "alive = torch.tensor([0 <= t - padding < n for t in range(ks)])\nreturn ~(alive[:, None] & alive)",
        "starts = range(-padding, n + padding - ks + 1, stride)\nalive = torch.tensor([any(0 <= s + t < n for s in starts) for t in range(ks)])\nreturn ~(alive[:, None] | alive)",
        "starts = range(-padding, n + padding - ks + 1, stride)\nalive = torch.tensor([any(0 <= s + t < n for s in starts) for t in range(ks)])\nreturn alive[:, None] & alive",
    ],
    "conv_gradient": [
        "(rows, cols), (h, w) = g.shape, kernel.shape\nout = torch.zeros((rows - 1) * stride + h, (cols - 1) * stride + w)\nfor r in range(rows):\n    for c in range(cols):\n        out[r * stride : r * stride + h, c * stride : c * stride + w] = g[r, c] * kernel\nreturn out",
        "(rows, cols), (h, w) = g.shape, kernel.shape\nout = torch.zeros((rows - 1) * stride + h, (cols - 1) * stride + w)\nfor r in range(rows):\n    for c in range(cols):\n        out[r * stride : r * stride + h, c * stride : c * stride + w] += g[r, c] * kernel.flip(0, 1)\nreturn out",
        "(rows, cols), (h, w) = g.shape, kernel.shape\nout = torch.zeros(rows + h - 1, cols + w - 1)\nfor r in range(rows):\n    for c in range(cols):\n        out[r : r + h, c : c + w] += g[r, c] * kernel\nreturn out",
    ],
    "max_pool": [
        "return img.unfold(0, ks, ks).unfold(1, ks, ks).mean((-2, -1))",
        "return img.unfold(0, ks, 1).unfold(1, ks, 1).amax((-2, -1))",
        "return img.unfold(0, ks, ks).unfold(1, ks, ks).amax((-2, -1)).relu()",
        "return img.unfold(0, ks, ks).unfold(1, ks, ks).amax(-1)[..., 0]",
    ],
    "depthwise": [
        "ni, h, w = kernels.shape\nreturn (x.unfold(1, h, 1).unfold(2, w, 1) * kernels[:, None, None]).sum((0, -2, -1))",
        "ni, h, w = kernels.shape\nreturn (x.unfold(1, h, 1).unfold(2, w, 1) * kernels[0]).sum((-2, -1))",
        "ni, h, w = kernels.shape\nreturn (x.unfold(1, h, 1).unfold(2, w, 1) * kernels.flip(1, 2)[:, None, None]).sum((-2, -1))",
    ],
    "separable": [
        "ni, h, w = kernels.shape\nreturn (x.unfold(1, h, 1).unfold(2, w, 1) * kernels[:, None, None]).sum((-2, -1))",
        'ni, h, w = kernels.shape\nmaps = (x.unfold(1, h, 1).unfold(2, w, 1) * kernels[:, None, None]).sum((-2, -1))\nreturn torch.einsum("oc,chw->ohw", mix.abs(), maps)',
        'ni, h, w = kernels.shape\nmaps = (x.unfold(1, h, 1).unfold(2, w, 1) * kernels[:, None, None]).sum((-2, -1))\nreturn torch.einsum("oc,chw->ochw", mix, maps)',
        'ni, h, w = kernels.shape\nmaps = (x.unfold(1, h, 1).unfold(2, w, 1) * kernels[:, None, None]).sum((-2, -1))\nreturn torch.einsum("oc,chw->ohw", mix, maps).relu()',
    ],
    "multiplications": [
        "return ni * nf * ks * ks * h * w, (ni * ks * ks + nf) * h * w",
        "return nf * ks * ks * h * w, ni * ks * ks * h * w + ni * nf * h * w",
        "return ni * nf * ks * ks * h * w, ni * nf * h * w",
        "return ni * nf * ks * ks, ni * ks * ks + ni * nf",
    ],
}


def body(name, text):
    "The stub with another body."
    head = stubs[name].split("\n")[0]
    return f"{head}\n{textwrap.indent(text, '    ')}\n"


@pytest.mark.parametrize(
    ("name", "text"), [(n, t) for n, ts in wrong.items() for t in ts], ids=lambda s: s[:12]
)
def test_a_wrong_answer_is_drawn(name, text, tmp_path, capsys):
    assert check(made(body(name, text), tmp_path)) is False
    said = capsys.readouterr().out
    assert said.startswith(f"{name} gave") and "smallest input" in said
    (number,) = plt.get_fignums()
    titles = [ax.get_title() for ax in plt.figure(number).axes]
    assert any(t.startswith("wanted") for t in titles) and any(
        t.startswith("yours") for t in titles
    )


def test_three_wrong_answers_to_each():
    assert min(map(len, wrong.values())) >= 3


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("im2col", "return None", "gave None. Is there a `return`?"),
        ("im2col", "pass", "gave None. Is there a `return`?"),
        ("im2col", "return [1, 2]", "gave list [1, 2]; a tensor of"),
        ("im2col", "return torch.zeros(7)", "gave the shape [7]"),
        ("im2col", "return torch.zeros(7, 7, 7, 7, 7)", "gave the shape [7, 7, 7, 7, 7]"),
        ("conv_unfold", "return (img * kernel.sum()).double()[: len(img) - len(kernel) + 1, : img.shape[1] - kernel.shape[1] + 1]",
         "gave numbers of torch.float64; torch.float32 was wanted"),
        ("output_size", "return (n + 2 * padding - ks) / stride + 1", "a whole number, an int, was wanted"),
        ("output_size", "return 'five'", "gave str 'five'; a number was wanted"),
        ("output_size", "return True", "gave bool True"),
        ("multiplications", "return 1", "a tuple of 2 numbers was wanted"),
        ("window_sum", "return img[99, 99]", "stopped on line 2, `return img[99, 99]`\nIndexError"),
        ("window_sum", "return imgg", "NameError"),
        ("window_sum", "return kernel.numpy().nothing", "AttributeError"),
        ("window_sum", "raise SystemExit", "SystemExit"),
    ],
)  # fmt: skip
def test_what_is_no_answer_gets_a_line(name, text, line, tmp_path, capsys):
    assert check(made(body(name, text), tmp_path)) is False
    assert line in capsys.readouterr().out


def test_wrong_arguments_get_a_line(tmp_path, capsys):
    assert check(made("def window_sum(img):\n    return img.sum()\n", tmp_path)) is False
    assert "could not be called. TypeError" in capsys.readouterr().out


def test_an_endless_loop_ends(tmp_path, capsys):
    text = "while True:\n    n += 1"
    assert check(made(body("field_size", f"n = 0\n{text}"), tmp_path), seconds=0.3) is False
    said = capsys.readouterr().out
    assert "still running after 0.3 seconds, on line" in said and "Does its loop ever end?" in said
    text = "n = 0\nwhile True:\n    try:\n        n += 1\n    except Exception:\n        pass"
    assert check(made(body("field_size", text), tmp_path), seconds=0.3) is False


@pytest.mark.parametrize(
    "text",
    [
        "return F.conv2d(img[None, None], kernel[None, None])[0, 0]",
        "f = getattr(F, 'conv' + '2d')\nreturn f(img[None, None], kernel[None, None])[0, 0]",
        "return torch.conv2d(img[None, None], kernel[None, None])[0, 0]",
        "layer = torch.nn.Conv2d(1, 1, kernel.shape, bias=False)\nlayer.weight.data = kernel[None, None]\nreturn layer(img[None, None])[0, 0].detach()",
        "return torch.convolution(img[None, None], kernel[None, None], None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1)[0, 0]",
        "return torch.ops.aten.conv2d(img[None, None], kernel[None, None])[0, 0]",
        "from slowconv.kernels import conv_slow\nreturn conv_slow(img, kernel)",
        "from slowconv.exercises import puzzles\nreturn puzzles['conv_unfold'].spec(img, kernel)",
        "import scipy.signal\nreturn torch.tensor(scipy.signal.correlate2d(img, kernel, 'valid'))",
    ],
)
def test_a_forbidden_call_is_caught(text, tmp_path, capsys):
    if "scipy" in text:
        pytest.importorskip("scipy")
    assert check(made(body("conv_unfold", text), tmp_path)) is False
    said = capsys.readouterr().out
    assert "does not allow" in said or "you write it yourself" in said
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    "text",
    [
        "out = 0\nfor r in range(3):\n    out = out + r\nreturn out",
        "return torch.stack([row for row in img])",
        "while img.sum() > 0:\n    img = img - 1\nreturn img",
        "return sum(a for a in img)",
        "return torch.stack(list(map(torch.sum, img)))",
    ],
)
def test_a_loop_where_none_is_allowed(text, tmp_path, capsys):
    assert check(made(body("conv_unfold", text), tmp_path)) is False
    said = capsys.readouterr().out
    assert "this puzzle allows none" in said and "on line" in said


def test_a_loop_in_a_helper_is_found(tmp_path, capsys):
    text = "def helper(img):\n    for row in img:\n        return row\n\n\ndef conv_unfold(img, kernel):\n    return helper(img)\n"
    assert check(made(text, tmp_path)) is False
    assert "this puzzle allows none" in capsys.readouterr().out


def test_an_answer_may_change_its_input(tmp_path):
    text = "img *= 2\nreturn (img / 2).unfold(0, ks, ks).unfold(1, ks, ks).amax((-2, -1))"
    assert check(made(body("max_pool", text), tmp_path)) is True


def test_what_it_printed_is_shown(tmp_path, capsys):
    assert check(made(body("same_padding", "print('ks is', ks)\nreturn 99"), tmp_path)) is False
    said = capsys.readouterr().out
    assert said.count("ks is") == 1 and "What it printed there:\nks is 1" in said


def test_the_same_answer_gets_the_same_picture(tmp_path, capsys):
    said = []
    for _ in range(2):
        check(made(body("output_size", wrong["output_size"][0]), tmp_path))
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_the_smallest_input_is_small(tmp_path, capsys):
    check(made(body("output_size", wrong["output_size"][0]), tmp_path))
    assert "n=1, ks=1, stride=1, padding=1" in capsys.readouterr().out


def test_two_layers_of_stride_2_see_seven_pixels():
    assert puzzles["field_size"].spec([(3, 2), (3, 2)]) == 7


def test_the_800():
    assert puzzles["dead_taps"].spec(2, 3, 2, 1).sum() * 16 * 10 == 800


@pytest.mark.parametrize("name", puzzles)
def test_hints_come_by_steps(name, capsys):
    told = []
    for step in (1, 2):
        hint(name, step)
        told.append(capsys.readouterr().out.strip())
    assert told == list(puzzles[name].hints) and all(told)
    with pytest.raises(ValueError, match="step=3"):
        hint(name, 3)


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="did you mean 'max_pool'"):
        hint("maxpool")
    with pytest.raises(ValueError, match="no puzzle is called"):
        check(lambda img: img)
    with pytest.raises(TypeError, match="is no function"):
        check(type("max_pool", (), {}))


@pytest.mark.parametrize("name", puzzles)
def test_the_spec_is_shown_and_nothing_else(name):
    text = repr(spec(name))
    assert text.startswith(f"def {name}(") and "@puzzle" not in text
    for told in puzzles[name].hints:
        assert told not in text


def test_solutions_are_in_a_notebook_of_their_own():
    for path in nbs.glob("0*.ipynb"):
        text = path.read_text()
        assert "solutions" not in text.lower()
        for code in codes(path):
            if code.startswith("def "):
                assert code.split("\n\n\n")[0].endswith("return ...")


def test_public_names():
    assert {"check", "hint", "spec", "puzzles"} <= set(exercises.__all__)
