"The command `slowconv`: what it prints, what it writes, and how it says no."

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

from slowconv.command import draw_run, main
from slowconv.convs import def_device, get_model
from slowconv.data import fashion_classes, fashion_mnist
from slowconv.training import fit

here = Path(sys.executable).parent
command = shutil.which("slowconv", path=str(here))


def slowconv(*args, **env):
    "Run the console script as a user does."
    assert command, "the console script is not installed: pip install -e ."
    env = {**os.environ, **env}
    return subprocess.run(
        [command, *map(str, args)], capture_output=True, text=True, timeout=120, env=env
    )


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


bad = {
    "epochs": ["-1", "--epochs -1"],
    "lr": ["nan", "lr nan"],
    "bs": ["0", "bs 0"],
    "device": ["gpu9", "gpu9"],
    "source": ["/nowhere", "'/nowhere'"],
    "out": ["/nowhere", "out /nowhere"],
    "seed": [str(10**30), "verflow"],
}


def one_line(text, part):
    assert text.startswith("slowconv: ") and part in text
    assert len(text.strip().splitlines()) == 1


@pytest.mark.parametrize("name", bad)
def test_a_bad_value_is_one_line(name, tmp_path):
    value, part = bad[name]
    kind = {"epochs": int, "bs": int, "seed": int, "lr": float}.get(name, str)
    with pytest.raises(SystemExit) as e:
        main(**{"source": "sample", "out": str(tmp_path), name: kind(value)})
    one_line(e.value.code, part)  # which Python prints to stderr, and ends with status 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args, code", [(["--help"], 0), (["--epochs", "many"], 2), (["--epoch"], 2)]
)
def test_what_needs_no_work_does_not_wait_for_torch(args, code, tmp_path):
    script = (
        "import sys, atexit\natexit.register(lambda: print('torch' in sys.modules))\n"
        f"sys.argv = ['slowconv', *{args}]\nfrom slowconv.command import main\nmain()\n"
    )
    (tmp_path / "run.py").write_text(script)  # as the console script is
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True)
    assert done.returncode == code and done.stdout.splitlines()[-1] == "False", done.stderr
    assert "--epochs" in done.stdout + done.stderr


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that nobody may write to")
def test_out_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    for out in ("/proc", str(tmp_path / "file")):
        with pytest.raises(SystemExit) as e:
            main(out=out, source="sample")
        one_line(e.value.code, f"--out {out}: cannot be written to")


@pytest.fixture
def tiny(tmp_path):
    "A source of 30 and 20 made-up images, and a folder to write to."
    (tmp_path / "out").mkdir()
    return {"source": str(make_folder(tmp_path / "data", 30, 20)), "out": str(tmp_path / "out")}


def test_it_trains_as_the_lesson_does(tiny, capsys):
    "Seed, model, optimizer, data, fit, in that order: the numbers of the notebook are those of the command."
    main(epochs=2, bs=15, lr=0.05, seed=3, **tiny)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    torch.manual_seed(3)
    model, want = get_model(), []
    opt = optim.SGD(model.parameters(), lr=0.05)
    dls = fashion_mnist(15, source=tiny["source"])
    fit(2, model, F.cross_entropy, opt, *dls, log=want.append)
    assert lines == want
    got = load_file(Path(tiny["out"]) / "slowconv.safetensors")
    off = 0 if def_device == "cpu" else 1e-5  # a GPU rounds otherwise the next time
    assert all((got[k] - v.cpu()).abs().max() <= off for k, v in model.state_dict().items())


@pytest.mark.parametrize("bs", [3, 15])
def test_no_epochs_say_how_good_the_model_is(tiny, capsys, bs):
    "Also where there are fewer images in a batch than places in the picture."
    main(epochs=0, bs=bs, **tiny)
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("epoch=")]
    pattern = r"validation loss=\d+\.\d{3}, validation accuracy=\d\.\d\d"
    assert any(re.fullmatch(pattern, line) for line in lines)


@pytest.mark.parametrize("at", [1, 5], ids=["first epoch", "second epoch"])
def test_an_interrupted_run_keeps_what_it_has(tiny, monkeypatch, at):
    "Ctrl-C: picture and weights are written, and the status says what happened."
    calls, real = [], F.cross_entropy

    def loss_func(pred, yb):
        calls.append(1)
        if len(calls) == at:  # an epoch has 2 steps and 2 batches to validate
            raise KeyboardInterrupt
        return real(pred, yb)

    monkeypatch.setattr(F, "cross_entropy", loss_func)
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
