"accuracy, fit, and what fit does when things go wrong."

import ast
import errno
import json
import math
import os
import pickle
import re
from pathlib import Path
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from conftest import no_interrupt
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from slowconv.convs import get_model, to_device
from slowconv.data import ColumnDataset, fashion_collate
from slowconv.training import accuracy, fit, run_epoch

# accuracy


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40))
def test_accuracy_is_the_share_of_equal_classes_whatever_the_order(pairs):
    y, pred = (torch.tensor(c) for c in zip(*pairs, strict=True))
    scores = F.one_hot(pred, 10) * 3.0 - 1
    want = sum(a == b for a, b in pairs) / len(pairs)
    for args in ((y, pred), (pred, y), (y, scores), (scores, y), (F.one_hot(y, 10), scores)):
        got = accuracy(*args)
        assert got.ndim == 0 and got.is_floating_point()
        assert got.item() == pytest.approx(want)


not_classes = {
    "unlike lengths": (torch.tensor([0, 1, 1]), torch.tensor([0, 1]), "3 and 2 rows"),
    "nothing": (torch.tensor([0])[:0], torch.zeros(0, 3), "0 and 0 rows"),
    "images": (torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2), r"\[3, 1, 2, 2\].*metric=None"),
    "a regression": (torch.zeros(3), torch.zeros(3, 1), r"float32 \[3\].*metric=None"),
}


@pytest.mark.parametrize("case", not_classes)
def test_accuracy_of_what_has_no_classes(case):
    y, y_pred, part = not_classes[case]
    with pytest.raises(ValueError, match=f"accuracy: .*{part}"):
        accuracy(y, y_pred)


def test_accuracy_takes_lists_and_arrays_and_counts_nan_as_wrong():
    assert accuracy([0, 1, 1, 0], torch.tensor([0, 1, 0, 1]).numpy()) == 0.5
    assert accuracy(torch.tensor([0, 0]), torch.tensor([[torch.nan, 1], [2.0, 1]])) == 0.5


# fit


def data(n=20, bs=8, seed=0):
    "`n` images of 2x2 whose class is that of their brightest pixel."
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 2, 2, generator=g)
    return DataLoader(TensorDataset(x, x.flatten(1).argmax(1)), batch_size=bs)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 4))


def run(epochs, model=None, loss_func=F.cross_entropy, lr=0.1, train=None, valid=None, **kwargs):
    model = model or linear()
    opt = optim.SGD(model.parameters(), lr=lr)
    return fit(epochs, model, loss_func, opt, train or data(), valid or data(13, seed=1), **kwargs)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def test_fit_is_the_loop_of_the_lesson():
    "The same weights as a loop written by hand."
    model, other = linear(), linear()
    other.load_state_dict(model.state_dict())
    run(3, model)
    opt = optim.SGD(other.parameters(), lr=0.1)
    for _ in range(3):
        for xb, yb in data():
            opt.zero_grad()
            F.cross_entropy(other(xb), yb).backward()
            opt.step()
    torch.testing.assert_close(weights(model), weights(other))


def test_fit_starts_from_no_gradient():
    "What an interrupted run left behind in `.grad` is not added to the first step."
    model, other = linear(), linear()
    other.load_state_dict(model.state_dict())
    sum(p.sum() for p in model.parameters()).backward()
    run(1, model)
    run(1, other)
    torch.testing.assert_close(weights(model), weights(other))


def test_fit_prints_a_line_per_epoch(capsys):
    loss, acc = run(2)
    out, err = capsys.readouterr()
    number = r"\d+\.\d{3}"
    for epoch, line in enumerate(out.splitlines()):
        assert re.fullmatch(
            rf"epoch={epoch}, validation loss={number}, validation accuracy=\d\.\d\d", line
        )
    assert line == f"epoch=1, validation loss={loss:.3f}, validation accuracy={acc:.2f}"
    assert len(out.splitlines()) == 2 and err == ""


def test_tqdm_shows_a_bar(capsys):
    run(1, tqdm_=True)
    out, err = capsys.readouterr()
    assert "epoch" in err and len(out.splitlines()) == 1


def test_fit_returns_two_floats_and_a_history():
    model = linear()
    result = run(3, model)
    assert isinstance(result, tuple) and len(result) == 2
    loss, acc = result
    assert type(loss) is float and type(acc) is float
    assert len(result.history) == 3
    assert [r["epoch"] for r in result.history] == [0, 1, 2]
    last = result.history[-1]
    assert (last["validation loss"], last["validation accuracy"]) == (loss, acc)
    assert math.isfinite(last["training loss"]) and last["seconds"] > 0
    assert (loss, acc) == run_epoch(model, F.cross_entropy, data(13, seed=1))


@given(n=st.integers(1, 30), bs=st.integers(1, 40))
def test_the_validation_loss_is_the_mean_over_images(n, bs):
    "Whatever the size of the last batch."
    model = linear()
    loss, acc = run(0, model, valid=data(n, bs))
    x, y = data(n).dataset.tensors
    with torch.no_grad():
        assert loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5)
        assert acc == pytest.approx(accuracy(y, model(x)).item(), rel=1e-5)


def test_the_training_loss_is_the_mean_over_images():
    model = linear()
    x, y = data(20).dataset.tensors
    want = F.cross_entropy(model(x), y).item()
    history = run(1, model, lr=1e-12, train=data(20, bs=8)).history
    assert history[0]["training loss"] == pytest.approx(want, rel=1e-5)


def test_fit_learns_and_evaluates_in_the_right_modes():
    class Modes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = linear(), []

        def forward(self, x):
            self.seen.append((self.training, torch.is_grad_enabled()))
            return self.layer(x)

    model = Modes()
    run(2, model)
    assert model.seen == ([(True, True)] * 3 + [(False, False)] * 2) * 2


def test_fit_brings_batches_to_the_model():
    model = get_model()
    x, y = torch.rand(8, 1, 28, 28), torch.arange(8)
    opt = optim.SGD(model.parameters(), lr=0.1)
    loss, _ = fit(1, model, F.cross_entropy, opt, [(x, y)], [(x, y)])
    assert loss == pytest.approx(
        F.cross_entropy(model(to_device(x)), to_device(y)).item(), rel=1e-4
    )


def test_no_epochs_only_evaluates(capsys):
    model = linear()
    before = weights(model)
    result = run(0, model)
    assert torch.equal(weights(model), before)
    assert result == run_epoch(model, F.cross_entropy, data(13, seed=1))
    assert list(result.history) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("epochs", [1.5, "3", None])
def test_epochs_that_are_no_n_epochs_number(epochs):
    with pytest.raises((TypeError, ValueError)):
        run(epochs)


def bad_from(epoch, value, steps=3):
    "A loss that is `value` from that epoch's training on."
    calls = []

    def loss_func(pred, yb):
        if torch.is_grad_enabled():
            calls.append(1)
        bad = len(calls) > epoch * steps and torch.is_grad_enabled()
        return F.cross_entropy(pred, yb) * (value if bad else 1)

    return loss_func


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_loss_that_is_no_number(value, epoch, capsys):
    with pytest.raises(FloatingPointError, match=rf"epoch.{epoch}\b.*lr=0\.25"):
        run(3, loss_func=bad_from(epoch, value), lr=0.25)
    assert len(capsys.readouterr().out.splitlines()) == epoch


def test_the_lr_that_is_quoted_is_the_one_in_use():
    model = linear()
    opt = optim.SGD(model.parameters(), lr=0.5)
    opt.param_groups[0]["lr"] = 0.125
    with pytest.raises(FloatingPointError, match=r"lr=0\.125"):
        fit(1, model, bad_from(0, math.nan), opt, data(), data())


@pytest.mark.parametrize("at", [1, 5, 8], ids=["first epoch", "second epoch", "third epoch"])
def test_an_interrupted_fit_keeps_weights_and_history(at, capsys):
    calls = []

    def loss_func(pred, yb):
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
        return F.cross_entropy(pred, yb)

    model, other = linear(), linear()
    other.load_state_dict(model.state_dict())
    with no_interrupt():
        result = run(5, model, loss_func)
    n_epochs = (at - 1) // 3
    assert len(result.history) == n_epochs
    assert [r["epoch"] for r in result.history] == list(range(n_epochs))
    opt = optim.SGD(other.parameters(), lr=0.1)
    steps = [batch for _ in range(n_epochs + 1) for batch in data()][: at - 1]
    if steps:
        run_epoch(other, F.cross_entropy, steps, opt=opt)
    torch.testing.assert_close(weights(model), weights(other))
    if n_epochs:
        last = result.history[-1]
        assert result == (last["validation loss"], last["validation accuracy"])
    else:  # what has been learned so far is looked at
        assert result == run_epoch(model, F.cross_entropy, data(13, seed=1))
    assert "interrupted" in capsys.readouterr().out
    assert len(run(1, model).history) == 1  # and on we go


def test_an_interrupt_while_validating_keeps_the_epochs_before():
    calls = []

    def loss_func(pred, yb):
        if not torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
        return F.cross_entropy(pred, yb)

    with no_interrupt():
        result = run(5, loss_func=loss_func)
    assert len(result.history) == 1
    assert math.isfinite(result.loss)


def test_any_other_error_gets_out():
    def loss_func(pred, yb):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(1, loss_func=loss_func)


def test_a_schedule_takes_a_step_for_each_batch():
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    dl = DataLoader(TensorDataset(x, y), batch_size=8)  # three batches
    model = nn.Linear(3, 2)
    opt = optim.SGD(model.parameters(), lr=0.6)
    sched = optim.lr_scheduler.LambdaLR(opt, lambda step: 1 - step / 6)
    fit(1, model, F.cross_entropy, opt, dl, dl, sched=sched)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.3)
    fit(1, model, F.cross_entropy, opt, dl, dl, sched=sched)
    assert opt.param_groups[0]["lr"] == pytest.approx(0)


# Other tasks than classification


def pairs(f, n=24):
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, f(x)), batch_size=8)


def test_an_autoencoder_trains_without_a_metric(capsys):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Unflatten(1, (1, 4, 4)))
    opt = optim.Adam(model.parameters(), lr=0.01)
    dl = pairs(lambda x: x)
    result = fit(3, model, F.mse_loss, opt, dl, dl, metric=None)
    losses = [r["validation loss"] for r in result.history]
    assert losses[0] > losses[1] > losses[2] == result.loss and result.accuracy is None
    assert list(result.history[0]) == ["epoch", "training loss", "validation loss", "seconds"]
    assert capsys.readouterr().out.splitlines()[2] == f"epoch=2, validation loss={losses[2]:.3f}"


def test_a_regression_trains_with_a_metric_of_ones_own():
    def mae(y, y_pred):
        return (y - y_pred).abs().mean()

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    opt, dl, lines = (
        optim.Adam(model.parameters(), lr=0.01),
        pairs(lambda x: x.mean((1, 2, 3))[:, None]),
        [],
    )
    loss, error = fit(2, model, F.mse_loss, opt, dl, dl, metric=mae, log=lines.append)
    x, y = dl.dataset.tensors
    assert error == pytest.approx(mae(y, model(x)).item(), rel=1e-5)
    assert lines[1] == f"epoch=1, validation loss={loss:.3f}, validation mae={error:.4g}"
    with pytest.raises(ValueError, match="accuracy: .*metric=None"):
        fit(1, model, F.mse_loss, opt, dl, dl)


def test_log_takes_the_place_of_print(capsys):
    lines = []
    run(2, log=lines.append)
    assert len(lines) == 2 and capsys.readouterr().out == ""


# What fit refuses at the door


def refuse(part, model=None, loss_func=F.cross_entropy, opt=None, train=None, **kwargs):
    model = model or linear()
    before = weights(model)
    opt = opt or optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"fit: {part}"):
        fit(2, model, loss_func, opt, train or data(), data(), **kwargs)
    return torch.equal(weights(model), before)


def test_an_optimizer_of_another_model():
    assert refuse("opt has none", opt=optim.SGD(linear().parameters(), lr=0.1))


def test_a_schedule_of_another_optimizer():
    other = optim.SGD(linear().parameters(), lr=0.1)
    assert refuse("sched moves", sched=optim.lr_scheduler.StepLR(other, 1))


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_loss_that_is_no_mean(reduction):
    assert refuse("loss_func has reduction", loss_func=nn.CrossEntropyLoss(reduction=reduction))


def test_a_loader_that_is_used_up():
    assert not refuse("the loader gave no images", train=(b for b in data()))


def test_help_says_what_fit_does():
    assert fit.__doc__.startswith("Train for")


# Checkpoints


def new_run(checkpoint, epochs=4, lr=0.1, sched=True, **kwargs):
    "A run whose order of images, dropout, momentum and schedule all have to be resumed."
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    opt = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    sched = optim.lr_scheduler.OneCycleLR(opt, 0.5, total_steps=12) if sched else None
    train = DataLoader(data().dataset, batch_size=8, shuffle=True)
    kwargs = {"loss_func": F.cross_entropy, "log": lambda line: None} | kwargs
    loss_func = kwargs.pop("loss_func")
    args = kwargs.pop("model", model), loss_func, opt, train, data(13, seed=1)
    result = fit(epochs, *args, sched=sched, checkpoint=checkpoint, **kwargs)
    return weights(model), result


def test_a_resumed_run_ends_like_an_unbroken_one(tmp_path):
    "Bit for bit: weights, losses, and what comes after."
    want, unbroken = new_run(None)
    after = torch.rand(3)
    for epochs in (1, 3, 4):
        got, resumed = new_run(tmp_path / "run.pt", epochs)
    assert torch.equal(got, want) and torch.equal(torch.rand(3), after)
    assert resumed == unbroken and [r["epoch"] for r in resumed.history] == [0, 1, 2, 3]
    lines = []
    got, again = new_run(str(tmp_path / "run.pt"), log=lines.append)
    assert torch.equal(got, want) and again == unbroken, "a finished run is only read"
    assert lines == ["run.pt has 4 of 4 epochs"]
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


other_runs = {
    "model": {"model": linear()},
    "loss": {"loss_func": F.multi_margin_loss},
    "optimizer": {"lr": 0.2},
    "schedule": {"sched": False},
}


@pytest.mark.parametrize("what", other_runs)
def test_a_checkpoint_of_another_run(tmp_path, what):
    path = tmp_path / "run.pt"
    new_run(path, 1)
    before = path.read_bytes()
    part = "opt has none" if what == "model" else f"another run; there the {what} is"
    with pytest.raises(ValueError, match=part):
        new_run(path, **other_runs[what])
    assert path.read_bytes() == before


def test_a_checkpoint_of_other_data_or_another_model(tmp_path):
    path = tmp_path / "run.pt"
    run(1, train=data(20), checkpoint=path)
    with pytest.raises(ValueError, match="training set is 20 examples.* 24 examples"):
        run(2, train=data(24), checkpoint=path)
    with pytest.raises(ValueError, match=r"there the model is .*\[4, 4\].*here it is .*\[5, 4\]"):
        run(2, nn.Sequential(nn.Flatten(), nn.Linear(4, 5)), checkpoint=path)


def test_a_checkpoint_of_other_images(tmp_path):
    dls = [pixels(torch.rand(8, 2, 2)) for _ in range(2)]
    run(1, train=dls[0], checkpoint=tmp_path / "run.pt")
    run(2, train=dls[0], checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="the first images is"):
        run(3, train=dls[1], checkpoint=tmp_path / "run.pt")


def pixels(images, **kwargs):
    ds = ColumnDataset({"image": images, "label": torch.arange(len(images)) % 4})
    return DataLoader(ds, 4, collate_fn=fashion_collate, **kwargs)


def test_a_loader_with_a_generator_of_its_own_is_resumed(tmp_path):
    images = torch.rand(8, 2, 2)

    def go(epochs, name):
        torch.manual_seed(1)
        generator, model = torch.Generator().manual_seed(2), linear()
        train = pixels(images, shuffle=True, generator=generator)
        run(epochs, model, train=train, checkpoint=tmp_path / name)
        return weights(model)

    go(2, "cut")
    assert torch.equal(go(4, "cut"), go(4, "unbroken"))


def test_no_epochs_with_a_checkpoint_tell_its_last_result(tmp_path):
    result = run(1, checkpoint=tmp_path / "run.pt")
    assert run(0, checkpoint=tmp_path / "run.pt") == result


class Evil:
    def __reduce__(self):
        return (print, ("it ran",))


def damaged(path):
    good = path.read_bytes()
    yield good[: len(good) // 2]
    at = good.index(next(iter(torch.load(path)["model"].values())).numpy().tobytes())
    yield good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]  # one bit of a weight
    yield b"not a checkpoint"
    yield b""
    torch.save({"weights": torch.zeros(3)}, path)
    yield path.read_bytes()
    yield pickle.dumps(Evil())
    torch.save({"run": Evil()}, path)
    yield path.read_bytes()


def test_a_file_that_is_no_checkpoint_is_left_alone_and_runs_no_code(tmp_path, capsys):
    path = tmp_path / "run.pt"
    new_run(path, 1)
    for content in list(damaged(path)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="run.pt: not a checkpoint, or cut short"):
            new_run(path)
        assert path.read_bytes() == content
    assert capsys.readouterr().out == ""


def test_a_place_where_no_checkpoint_can_be(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "nowhere" / "run.pt", tmp_path / "pipe", "/dev/full"):
        with pytest.raises(ValueError, match=f"fit: checkpoint='{path}'; expected a file"):
            run(1, checkpoint=path)
    for path in (True, 3):
        with pytest.raises(TypeError):
            run(1, checkpoint=path)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    new_run(path, 1)
    before = path.read_bytes()

    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        new_run(path, 2)
    assert path.read_bytes() == before


def test_only_the_first_process_writes_and_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    run(1, checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == [] and not capsys.readouterr().out


# The numbers that the lesson draws

root = Path(__file__).parents[1]


def literals():
    "dict from name to value: what code cells of the lesson assign that can be read without running them"
    found = {}
    for cell in json.loads((root / "nbs" / "04_training.ipynb").read_text())["cells"]:
        for node in ast.parse("".join(cell["source"])).body if cell["cell_type"] == "code" else ():
            if isinstance(node, ast.Assign) and isinstance(
                node.value, (ast.Dict, ast.List, ast.Constant)
            ):
                try:
                    found[node.targets[0].id] = ast.literal_eval(node.value)
                except (ValueError, AttributeError):
                    pass
    return found


def results(name):
    lines = (root / "benchmarks" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def close(a, b):
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), atol=6e-4, rtol=0)


def band(values):
    return [(min(v), median(v), max(v)) for v in values]


def test_the_lessons_fifty_seeds_are_those_of_the_benchmark():
    rows, lesson = results("seeds"), literals()
    epochs = list(zip(*(r["validation accuracy"] for r in rows), strict=True))
    assert sorted(r["seed"] for r in rows) == list(range(50))
    close(lesson["last"], sorted(epochs[-1]))
    for i, name in enumerate(("least", "middle", "most")):
        close(lesson[name], [b[i] for b in band(epochs)])
    losses = [r["validation loss"] for r in rows]
    rose = sum(any(b > a for a, b in zip(v, v[1:], strict=False)) for v in losses)
    fell = sum(r["validation accuracy"][-1] < max(r["validation accuracy"]) for r in rows)
    prose = (root / "nbs" / "04_training.ipynb").read_text()
    assert (rose, fell) == (lesson["loss_rose"], lesson["earlier_best"])
    assert f"In {rose} of the 50 runs" in prose and f"in {fell} of the 50 the accuracy" in prose


def test_the_lessons_cnn_and_mlp_are_those_of_the_benchmark():
    rows, lesson = results("cnn_mlp"), literals()
    found = {(r["network"], r["setting"], r["images"]): r for r in rows}
    assert all(len(r["accuracy"]) == 5 for r in rows)
    names = {"CNN": "CNN", "small MLP": "MLP, 7 hidden", "large MLP": "MLP, 50 hidden"}
    for ours, name in names.items():
        assert lesson["as_they_are"][ours] == found[name, "in place", 60_000]["accuracy"]
        assert lesson["shuffled_pixels"][ours] == found[name, "shuffled", 60_000]["accuracy"]
        for table, setting in (("untaught", "in place"), ("taught", "moved")):
            by_pixels = zip(*found[name, setting, 60_000]["by pixels"], strict=True)
            close(lesson[table][ours], band(by_pixels))
    for n, runs in lesson["by_size"].items():
        close(runs, [found[name, "in place", n]["accuracy"] for name in names.values()])
    assert [*lesson["by_size"], 60_000] == sorted({r["images"] for r in rows})
    prose = (root / "nbs" / "04_training.ipynb").read_text()
    for head, setting in (("as they are", "in place"), ("shuffled",) * 2, ("moved",) * 2):
        rates = [found[name, setting, 60_000]["lr"] for name in names.values()]
        assert f"| learning rate, {head} | {' | '.join(f'{r:g}' for r in rates)} |" in prose
    for r in rows:
        if r["setting"] == "shuffled" and r["network"] != "CNN":
            assert r["lr"] == found[r["network"], "in place", 60_000]["lr"]
        else:
            tried = sorted(map(float, r["rates"]))
            assert tried[0] < r["lr"] < tried[-1], "the best rate has a worse one on either side"
