"accuracy, fit and what fit does when things go wrong."

import copy
import inspect
import math
import pickle
import re

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from conftest import no_interrupt
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from slowconv.convs import get_model, to_device
from slowconv.data import fashion_mnist
from slowconv.training import accuracy, evaluate, fit, predict, train_epoch


@pytest.mark.parametrize(
    "f, want",
    [
        (accuracy, {"y": ..., "y_pred": ...}),
        (
            fit,
            {
                **dict.fromkeys(
                    ("epochs", "model", "loss_func", "opt", "train_dl", "valid_dl"), ...
                ),
                "tqdm_": False,
            },
        ),
    ],
)
def test_signatures_are_the_contract(f, want):
    params = inspect.signature(f).parameters.values()
    positional = [p for p in params if p.kind is not p.KEYWORD_ONLY]
    assert {p.name: ... if p.default is p.empty else p.default for p in positional} == want
    assert [p.name for p in positional] == list(want)


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


@pytest.mark.parametrize("n, m", [(3, 2), (1, 2), (0, 3), (0, 0)])
@pytest.mark.parametrize("scores", [False, True])
def test_accuracy_of_unlike_lengths(n, m, scores):
    y, pred = torch.zeros(n, dtype=torch.int64), torch.zeros(m, 10) if scores else torch.zeros(m)
    for args in ((y, pred), (pred, y)):
        a, b = map(len, args)
        with pytest.raises(ValueError, match=f"{a} and {b}"):
            accuracy(*args)


def test_accuracy_of_an_axis_too_many():
    with pytest.raises(ValueError, match=r"\[4, 10, 1\]"):
        accuracy(torch.zeros(4), torch.zeros(4, 10, 1))


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
    assert (last["validation loss"], last["accuracy"]) == (loss, acc)
    assert math.isfinite(last["training loss"]) and last["seconds"] > 0
    assert (loss, acc) == evaluate(model, F.cross_entropy, data(13, seed=1))


def test_history_draws_itself():
    history = run(2).history
    axs = history.plot()
    assert len(axs) == 3
    assert [bar.get_height() for bar in axs[2].patches] == [r["seconds"] for r in history]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axs[0].lines}
    assert drawn["training loss"] == [r["training loss"] for r in history]
    assert drawn["validation loss"] == [r["validation loss"] for r in history]
    assert list(axs[1].lines[0].get_ydata()) == [r["accuracy"] for r in history]


def test_history_draws_on_two_axes_that_are_given():
    axs = plt.subplots(1, 2)[1]
    assert run(1).history.plot(axs) is axs
    assert all(ax.lines for ax in axs)


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
    assert result == evaluate(model, F.cross_entropy, data(13, seed=1))
    assert list(result.history) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("epochs", [-1, -7])
def test_negative_epochs(epochs):
    model = linear()
    before = weights(model)
    with pytest.raises(ValueError, match=f"epochs={epochs}"):
        run(epochs, model)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("epochs", [1.5, "3", None])
def test_epochs_that_are_no_whole_number(epochs):
    with pytest.raises((TypeError, ValueError)):
        run(epochs)


@pytest.mark.parametrize("where", ["train", "valid"])
@pytest.mark.parametrize("channels", [3, 28])
def test_a_model_and_a_batch_of_unlike_channels(where, channels):
    good = [(torch.rand(4, 1, 28, 28), torch.arange(4))]
    bad = [(torch.rand(4, channels, 28, 28), torch.arange(4))]
    dls = {"train": good, "valid": good, where: bad}
    with pytest.raises(
        ValueError, match=rf"\[4, {channels}, 28, 28\].*{channels} channels.*takes 1"
    ):
        run(1, get_model(), train=dls["train"], valid=dls["valid"])


def test_an_error_that_is_not_about_channels_is_left_as_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict(linear(), torch.rand(4, 1, 3, 3))


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


def test_the_error_quotes_the_loss():
    for value, text in ((math.nan, "nan"), (math.inf, "inf")):
        with pytest.raises(FloatingPointError, match=rf"\b{text}\b"):
            run(1, loss_func=bad_from(0, value), train=data(8, bs=8))


def test_a_learning_rate_that_is_much_too_high():
    "The last step of an epoch ruins the weights, and only the validation loss tells."
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 4))
    one_batch = data(8, bs=8)
    with pytest.raises(FloatingPointError, match=r"epoch.0\b.*lr=1e\+38"):
        run(1, model, lr=1e38, train=one_batch, valid=one_batch)


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
    whole = (at - 1) // 3
    assert len(result.history) == whole
    assert [r["epoch"] for r in result.history] == list(range(whole))
    opt = optim.SGD(other.parameters(), lr=0.1)
    steps = [batch for _ in range(whole + 1) for batch in data()][: at - 1]
    if steps:
        train_epoch(other, F.cross_entropy, opt, steps)
    torch.testing.assert_close(weights(model), weights(other))
    if whole:
        last = result.history[-1]
        assert result == (last["validation loss"], last["accuracy"])
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


def test_a_result_can_be_copied_and_pickled():
    result = run(2)
    for again in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert again == result
        assert list(again.history) == list(result.history)
    assert to_device(result, "cpu") == result


def test_the_lesson_runs_on_the_sample():
    "One epoch of batches of 32: far from done, well above chance."
    torch.manual_seed(42)
    model = get_model()
    with fashion_mnist(32, source="sample") as dls:
        before = evaluate(model, F.cross_entropy, dls.valid)
        after = fit(1, model, F.cross_entropy, optim.SGD(model.parameters(), lr=0.1), *dls)
    assert after.loss < before[0]
    assert after.accuracy > 0.4


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
