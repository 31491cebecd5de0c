"The course: what students get gives nothing away, and nobody talks `grade` into a point."

import json
import math
import re

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slowconv.course import grade, main, places, read_functions, write_course
from slowconv.puzzles import puzzles

solutions, sheets = read_functions("99*.ipynb"), read_functions("[01]*.ipynb")


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    "dict: form to dict: name of a notebook to its cells' sources"
    folder = tmp_path_factory.mktemp("course")
    names = write_course(folder)
    notebooks = {f: {n: folder / f / at.format(n) for n in names} for f, at in places.items()}
    for path in [path for paths in notebooks.values() for path in paths.values()]:
        nbformat.validate(nbformat.read(path, as_version=4))
    return {
        form: {n: [c["source"] for c in json.loads(p.read_text())["cells"]] for n, p in ps.items()}
        for form, ps in notebooks.items()
    }


def lines(source):
    "The lines of an answer that nobody else has."
    theirs = "\n".join(sheets.values())
    own = {line.strip() for line in source.splitlines()[1:]}
    return [line for line in own if line not in theirs and len(line) > 20]


def test_students_get_every_stub_and_nothing_of_an_answer_or_a_test(course):
    text = "\n".join(source for cells in course["student"].values() for source in cells)
    assert all(sheets[name] in text for name in puzzles)
    assert sum(line in text for source in solutions.values() for line in lines(source)) == 0
    assert not re.search(r"SOLUTION|HIDDEN|grade\(|assert |wrong order|\.ipynb", text)
    assert all("import slowconv\n" in cells[1] for cells in course["student"].values())


@pytest.mark.parametrize("form", ["key", "otter", "nbgrader"])
def test_teachers_get_every_answer(course, form):
    text = "\n".join(source for cells in course[form].values() for source in cells)
    assert all(source in text for source in solutions.values())
    assert text.count("slowconv.course.grade(") == (form != "key") * len(puzzles)


@pytest.mark.parametrize("form", ["otter", "nbgrader"])
def test_what_graders_take_out_leaves_the_stub(course, form):
    found = 0
    for source in (s for cells in course[form].values() for s in cells if "# BEGIN SOL" in s[9:]):
        left = re.sub(r"# BEGIN SOLUTION.*# END SOLUTION\n", "", source, flags=re.S)
        name = re.match(r"def (\w+)", left)[1]
        assert left == f"{sheets[name]}\n\n\ncheck({name}, {name}_slow);"
        found += 1
    assert found == len(puzzles)


@pytest.fixture
def answer(tmp_path):
    "Runs a source as a notebook would, and gives its names."

    def run(source):
        (tmp_path / "cell.py").write_text(source)
        names = {"torch": torch, "F": F, "nn": nn, "math": math}
        exec(compile(source, tmp_path / "cell.py", "exec"), names)
        return names

    return run


@pytest.mark.parametrize("name", puzzles)
def test_a_stub_gets_nothing(name, answer):
    assert grade(name, answer(sheets[name])) == 0


@pytest.mark.parametrize("name", ["output_size", "telling_image", "field_size"])
def test_a_right_answer_gets_a_point(name, answer, capsys):
    assert grade(name, answer(solutions[name])) == 1
    assert not any(capsys.readouterr())


slow = sheets["telling_image_slow"]
helper = sheets["im2col_slow"].replace("im2col_slow", "helper")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("im2col", "x = 1"),
        ("im2col", "im2col = 3"),
        ("im2col", sheets["im2col_slow"].replace("_slow", "")),
        ("im2col", f"{helper}\ndef im2col(img, ks):\n    return helper(img, ks)"),
        ("im2col", "im2col = im2col_slow = lambda img, ks: img"),
        ("output_size", "def output_size(n, ks, stride, padding):\n    raise SystemExit"),
        ("telling_image", f"def bool(x): return True\n{slow}\ndef telling_image(k): return k"),
        ("telling_image", "F.conv2d = None\ndef telling_image(k): return k"),
    ],
)
def test_a_trick_gets_nothing(name, source, answer, monkeypatch):
    monkeypatch.setattr(F, "conv2d", F.conv2d)  # put back afterwards
    assert grade(name, answer(source)) == 0


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for folder in (tmp_path, tmp_path / "mine"):
        with pytest.raises(SystemExit, match="slowconv-course: .*mine|not empty"):
            main(folder=str(folder))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
