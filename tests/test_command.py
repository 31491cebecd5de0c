"The command `slowconv`: what it prints, what it writes, and how it says no."

import inspect
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make_folder, no_interrupt
from PIL import Image
from safetensors.torch import load_file
from torch import optim

from slowconv.command import check_settings, draw_run, main, run, save_run
from slowconv.convs import get_model
from slowconv.data import fashion_classes, fashion_mnist
from slowconv.training import fit

here = Path(sys.executable).parent
command = shutil.which("slowconv", path=str(here)) or shutil.which("slowconv")


def slowconv(*args, **env):
    "Run the console script as a user does."
    assert command, "the console script is not installed: pip install -e ."
    env = {**os.environ, **env}
    return subprocess.run(
        [command, *map(str, args)], capture_output=True, text=True, timeout=120, env=env
    )


def test_options_are_those_of_the_issue():
    params = inspect.signature(main).parameters
    assert list(params) == ["epochs", "bs", "lr", "seed", "source", "device", "out"]
    defaults = {k: params[k].default for k in ("epochs", "lr", "seed", "source", "device")}
    assert defaults == {"epochs": 6, "lr": 0.1, "seed": 42, "source": None, "device": None}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "The console script run once on the sample: what it said, and where it wrote."
    out = tmp_path_factory.mktemp("trained")
    return slowconv("--epochs", 1, "--source", "sample", "--out", out), out


def test_the_command_prints_an_epoch_line_and_two_paths(trained):
    done, out = trained
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    epochs = [line for line in lines if line.startswith("epoch=")]
    assert len(epochs) == 1
    assert re.fullmatch(
        r"epoch=0, validation loss=\d\.\d{3}, validation accuracy=0\.\d\d", epochs[0]
    )
    assert lines[-2:] == [str(out / "slowconv.png"), str(out / "slowconv.safetensors")]
    assert sum("sample" in line for line in lines) >= 1


def test_the_command_says_that_it_takes_batches_of_32(trained):
    assert "batches of 32" in trained[0].stdout


def test_the_command_shows_progress(trained):
    "5,000 images in batches of 32 are 157 steps."
    assert "/157" in trained[0].stderr
    assert "Traceback" not in trained[0].stderr


def test_the_command_leaves_two_files_and_no_more(trained):
    _, out = trained
    assert sorted(p.name for p in out.iterdir()) == ["slowconv.png", "slowconv.safetensors"]
    with Image.open(out / "slowconv.png") as im:
        assert im.format == "PNG" and min(im.size) > 500
        assert len(im.convert("L").getcolors()) > 50  # more than an empty page


def test_the_weights_fit_the_model(trained):
    done, out = trained
    model = get_model()
    model.load_state_dict(load_file(out / "slowconv.safetensors"))
    acc = float(re.search(r"accuracy=(\d\.\d\d)", done.stdout)[1])
    with fashion_mnist(32, source="sample") as dls:
        loss, again = fit(0, model, F.cross_entropy, None, *dls)
    assert again == pytest.approx(acc, abs=0.0051)
    assert acc > 0.4


bad = {
    "epochs": ["--epochs", "-1", "epochs -1"],
    "lr nan": ["--lr", "nan", "lr nan"],
    "lr 0": ["--lr", "0", "lr 0"],
    "lr negative": ["--lr", "-0.5", "lr -0.5"],
    "lr inf": ["--lr", "inf", "lr inf"],
    "bs": ["--bs", "0", "bs 0"],
    "device": ["--device", "gpu9", "'gpu9'"],
    "device without numbers": ["--device", "meta", "meta"],
    "source": ["--source", "/nowhere", "'/nowhere'"],
    "out": ["--out", "/nowhere", "out /nowhere"],
    "seed": ["--seed", str(10**30), str(10**30)],
}


def one_line(text, part):
    assert text.startswith("slowconv: ") and part in text
    assert len(text.strip().splitlines()) == 1


@pytest.mark.parametrize("case", bad)
def test_a_bad_value_is_one_line_before_any_work(case, tmp_path, capsys, monkeypatch):
    option, value, part = bad[case]
    name = option.lstrip("-")
    kind = {"epochs": int, "bs": int, "seed": int, "lr": float}.get(name, str)
    monkeypatch.chdir(tmp_path)
    settings = {"source": "sample", "out": str(tmp_path), name: kind(value)}
    with pytest.raises(SystemExit) as e:
        main(**settings)
    assert isinstance(e.value.code, str)  # which Python prints to stderr, and ends with status 1
    one_line(e.value.code, part)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("case", ["lr nan"])
def test_a_bad_value_in_a_terminal(case, tmp_path):
    option, value, part = bad[case]
    done = slowconv(option, value, "--source", "sample", "--out", tmp_path)
    assert done.returncode not in (0, None)
    one_line(done.stderr, part)
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_out_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as e:
        main(out=str(tmp_path / "file"), source="sample")
    one_line(e.value.code, str(tmp_path / "file"))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that nobody may write to")
def test_out_cannot_be_written_to():
    with pytest.raises(SystemExit) as e:
        main(out="/proc", source="sample")
    one_line(e.value.code, "/proc")


@pytest.mark.parametrize("what", ["empty", "truncated", "other images"])
def test_a_source_that_will_not_do(what, tmp_path):
    folder, out = tmp_path / "data", tmp_path / "out"
    folder.mkdir(), out.mkdir()
    if what != "empty":
        make_folder(folder, gz="")
        path = folder / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:-1] if what == "truncated" else b"\0\0\x08\x09")
    with pytest.raises(SystemExit) as e:
        main(source=str(folder), out=str(out))
    one_line(e.value.code, str(folder))
    assert list(out.iterdir()) == []


def test_check_settings_lets_good_ones_pass(tmp_path):
    check_settings(0, None, 0.1, 42, None, tmp_path)
    check_settings(6, 1, 1e-9, 0, "cpu", str(tmp_path))


def test_a_learning_rate_that_ruins_the_run_is_one_line(tmp_path):
    with pytest.raises(SystemExit) as e:
        main(epochs=1, bs=500, lr=1e30, source="sample", out=str(tmp_path))
    one_line(e.value.code, "lr=1e+30")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny(tmp_path):
    "A source of 30 and 20 made-up images, and a folder to write to."
    (tmp_path / "out").mkdir()
    return {"source": str(make_folder(tmp_path / "data", 30, 20)), "out": str(tmp_path / "out")}


def test_the_same_seed_gives_the_same_weights(tiny):
    weights = []
    for seed in (7, 7, 8):
        _, paths = run(epochs=2, bs=15, seed=seed, **tiny)
        weights.append(Path(paths[1]).read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_run_trains_as_the_lesson_does(tiny):
    "Seed, model, optimiser, data, fit, in that order: the numbers of the notebook are those of the command."
    result, paths = run(epochs=2, bs=15, lr=0.05, seed=3, **tiny)
    torch.manual_seed(3)
    model = get_model()
    with fashion_mnist(15, source=tiny["source"]) as dls:
        want = fit(2, model, F.cross_entropy, optim.SGD(model.parameters(), lr=0.05), *dls)
    assert result == want
    got = load_file(paths[1])
    assert all(torch.equal(got[k], v.cpu()) for k, v in model.state_dict().items())


@pytest.mark.parametrize("bs", [1, 3, 8, 12, 15])
def test_batches_of_any_size(tiny, bs):
    "Fewer images in a batch than there are places in the picture."
    _, paths = run(epochs=0, bs=bs, **tiny)
    assert all(Path(p).is_file() for p in paths)


def test_no_epochs_say_how_good_the_model_is(tiny, capsys):
    main(epochs=0, bs=15, **tiny)
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("epoch=")]
    assert any(
        re.fullmatch(r"validation loss=\d+\.\d{3}, validation accuracy=\d\.\d\d", line)
        for line in lines
    )


@pytest.mark.parametrize("bs, said", [(None, True), (500, False)])
def test_32_only_on_the_sample_and_only_if_none_was_named(bs, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLOWCONV_DATA", "sample")
    run(epochs=0, bs=bs, out=str(tmp_path))
    assert ("batches of 32" in capsys.readouterr().out) == said


def test_256_where_it_is_not_the_sample(tiny, capsys, monkeypatch):
    asked = []
    real = fashion_mnist
    monkeypatch.setattr(
        "slowconv.command.fashion_mnist", lambda bs, **kw: (asked.append(bs), real(bs, **kw))[1]
    )
    run(epochs=0, **tiny)
    assert asked == [256]
    assert "batches of" not in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_has(tiny, monkeypatch):
    "Ctrl-C in the second epoch: picture and weights are written, and the status says what happened."
    calls = []
    real = F.cross_entropy

    def loss_func(pred, yb):
        calls.append(1)
        if len(calls) == 5:  # 2 steps, 2 batches to validate, then the second epoch
            raise KeyboardInterrupt
        return real(pred, yb)

    monkeypatch.setattr("slowconv.command.F.cross_entropy", loss_func)
    with pytest.raises(SystemExit) as e, no_interrupt():
        main(epochs=4, bs=15, **tiny)
    assert e.value.code == 130
    assert sorted(os.listdir(tiny["out"])) == ["slowconv.png", "slowconv.safetensors"]


def test_the_picture_shows_curves_predictions_and_filters(tiny):
    model = get_model()
    with fashion_mnist(20, source=tiny["source"]) as dls:
        history = fit(
            2, model, F.cross_entropy, optim.SGD(model.parameters(), lr=0.1), *dls
        ).history
        fig = draw_run(model, history, [(x.repeat(2, 1, 1, 1), y.repeat(2)) for x, y in dls.valid])
    axes = {ax.get_title(): ax for ax in fig.axes}
    filters = model[0][0].weight.detach().cpu()
    for i in range(4):
        drawn = axes[f"filter {i}"].images[0].get_array()
        torch.testing.assert_close(torch.tensor(drawn), filters[i, 0])
    curves = [ax for ax in fig.axes if ax.lines]
    assert len(curves) == 2
    losses = [list(line.get_ydata()) for line in curves[0].lines]
    assert [r["validation loss"] for r in history] in losses
    garments = [t for t in axes if t.split("\n")[0] in fashion_classes]
    assert garments
    assert sum(ax.images[0].get_array().shape == (28, 28) for ax in fig.axes if ax.images) >= 10


def test_save_run_leaves_the_old_files_where_it_fails(tiny):
    out = Path(tiny["out"])
    (out / "slowconv.png").write_text("old")
    (out / "slowconv.safetensors").write_text("old")

    class Torn:
        def savefig(self, *args, **kwargs):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        save_run(get_model(), Torn(), tiny["out"])
    assert {p.name: p.read_text() for p in out.iterdir()} == {
        "slowconv.png": "old",
        "slowconv.safetensors": "old",
    }


def test_interrupted_in_the_first_epoch(tiny, monkeypatch):
    "Nothing was measured yet; there is a picture all the same."

    def loss_func(pred, yb):
        raise KeyboardInterrupt

    monkeypatch.setattr("slowconv.command.F.cross_entropy", loss_func)
    with no_interrupt():
        result, paths = run(epochs=2, bs=16, **tiny)
    assert math.isnan(result.loss) and list(result.history) == []
    assert all(Path(p).is_file() for p in paths)
