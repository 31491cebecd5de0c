"A run that survives: killed, broken, full; and what must not be loaded."

import errno
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import no_interrupt
from safetensors.torch import load_file, save_file
from torch import nn, optim
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from slowconv import checkpoint as ckpt
from slowconv.training import fit

optimizers = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True),
}
schedules = {
    "none": lambda opt: None,
    "OneCycleLR": lambda opt: optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=5 * 4),
    "LambdaLR": lambda opt: optim.lr_scheduler.LambdaLR(opt, lambda step: 1 / (step + 1)),
    "SequentialLR": lambda opt: optim.lr_scheduler.SequentialLR(
        opt,
        [optim.lr_scheduler.LinearLR(opt), optim.lr_scheduler.CosineAnnealingLR(opt, 9)],
        [7],
    ),
}


def network(width=6):
    "All that has a state or random numbers of its own."
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(width * 4, 4),
    )


class Noisy(TensorDataset):
    "Images that Python's and NumPy's random numbers change."

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + random.random() / 10 + float(np.random.rand()) / 10, y  # noqa: NPY002


def loaders(n=25, bs=7, **kwargs):
    g = torch.Generator().manual_seed(5)
    x, y = torch.rand(n, 1, 4, 4, generator=g), torch.randint(4, (n,), generator=g)
    ds = Noisy(x, y)
    return DataLoader(ds, bs, shuffle=not kwargs, **kwargs), DataLoader(TensorDataset(x, y), bs)


def run(epochs, checkpoint=None, opt="momentum", sched="none", seed=0, width=6, dls=None, lr=None):
    "The same line each time; the order of the images and the noise come from seeded random numbers."
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    model = network(width)
    opt = optimizers[opt](model.parameters())
    if lr:
        opt.param_groups[0]["lr"] = lr
    sched = schedules[sched](opt)
    result = fit(
        epochs,
        model,
        F.cross_entropy,
        opt,
        *(dls or loaders()),
        sched=sched,
        checkpoint=checkpoint,
    )
    return model.state_dict(), result


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in b)


def records(result):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in result.history]


@pytest.mark.parametrize("sched", schedules)
@pytest.mark.parametrize("opt", optimizers)
def test_in_two_halves_or_at_once(opt, sched, tmp_path):
    "The last bit of each weight and buffer, the history, and the random numbers afterwards."
    path = tmp_path / "run.safetensors"
    straight, want = run(5, opt=opt, sched=sched)
    after = torch.rand(3)
    run(2, path, opt, sched)
    again, result = run(5, path, opt, sched, seed=0)
    assert torch.equal(torch.rand(3), after)
    assert same(again, straight)
    assert result == want and records(result) == records(want)
    assert os.listdir(tmp_path) == [path.name]


def test_another_seed_does_not_matter_once_it_goes_on(tmp_path):
    straight, _ = run(4)
    run(1, tmp_path / "c")
    assert same(run(4, tmp_path / "c", seed=99)[0], straight)


@pytest.mark.parametrize("where", ["loader", "sampler"])
def test_a_generator_of_its_own(where, tmp_path):
    def dls():
        g = torch.Generator().manual_seed(3)
        if where == "loader":
            return DataLoader(loaders()[0].dataset, 7, shuffle=True, generator=g), loaders()[1]
        return loaders(sampler=RandomSampler(range(25), generator=g))

    straight, _ = run(4, dls=dls())
    run(2, tmp_path / "c", dls=dls())
    assert same(run(4, tmp_path / "c", dls=dls())[0], straight)


def test_a_finished_run_returns_at_once(tmp_path, capsys):
    path = tmp_path / "c"
    done, want = run(3, path)
    content, stamp = path.read_bytes(), path.stat().st_mtime_ns
    train = DataLoader([None] * 25, loaders()[0].batch_size)  # of images that cannot be trained on
    again, result = run(3, path, dls=(train, train))
    assert same(again, done) and result == want and list(result.history) == list(want.history)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, stamp)
    assert "3 of 3 epochs" in capsys.readouterr().out


def test_it_holds_data_only_and_by_name(tmp_path):
    run(1, tmp_path / "c", opt="AdamW")
    tensors = load_file(tmp_path / "c")
    assert {
        "model.0.weight",
        "model.1.running_mean",
        "opt.state.0.exp_avg",
        "random.0.torch",
    } <= set(tensors)


def test_the_interrupted_line_again(tmp_path):
    "In a notebook: the same model and optimizer, in the middle of an epoch, and the cell once more."
    calls = []

    def loss_func(pred, yb):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return F.cross_entropy(pred, yb)

    straight, want = run(5, sched="OneCycleLR")
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model, dls = network(), loaders()
    opt = optimizers["momentum"](model.parameters())
    sched = schedules["OneCycleLR"](opt)
    for _ in range(2):
        with no_interrupt():
            result = fit(5, model, loss_func, opt, *dls, sched=sched, checkpoint=tmp_path / "c")
    assert same(model.state_dict(), straight) and records(result) == records(want)


def untouched(path, epochs, match, error=ValueError, **kwargs):
    content = path.read_bytes()
    with pytest.raises(error, match=match):
        run(epochs, path, **kwargs)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"width": 5}, r"another model: .*Conv2d\(1, 6.* there, .*Conv2d\(1, 5.* here"),
        ({"opt": "AdamW"}, "another optimizer: SGD there, AdamW here"),
        ({"lr": 0.2}, "another optimizer: lr=0.1 there, lr=0.2 here"),
        ({"sched": "OneCycleLR"}, "another (optimizer|schedule)"),
        ({"epochs": 1}, "2 epochs already"),
        ({"dls": loaders(30)}, "another set of batches: 4, of size 7 there, 5, of size 7 here"),
        ({"dls": loaders(bs=8)}, "another set of batches: .* of size 8 here"),
    ],
    ids=str,
)
def test_of_another_run(kwargs, match, tmp_path):
    run(2, tmp_path / "c")
    untouched(tmp_path / "c", **{"epochs": 3, "match": match, **kwargs})


def test_of_other_generators(tmp_path):
    "The model is as it was before: all is looked at first."
    run(2, tmp_path / "c")
    own = DataLoader(
        loaders()[0].dataset, 7, shuffle=True, generator=torch.Generator().manual_seed(3)
    )
    untouched(tmp_path / "c", 3, "had 0 generators of their own, these have 1", dls=(own, own))


def test_no_epochs_only_evaluate(tmp_path):
    run(2, tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    assert run(0, tmp_path / "c")[1] == run(0)[1]
    assert (tmp_path / "c").read_bytes() == content


def test_what_a_killed_run_left_is_written_over(tmp_path):
    (tmp_path / ".c.part").write_bytes(b"half a check")
    run(1, tmp_path / "c")
    assert os.listdir(tmp_path) == ["c"]


def test_of_another_length_of_the_schedule(tmp_path, monkeypatch):
    run(2, tmp_path / "c", sched="OneCycleLR")
    longer = lambda opt: optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=9 * 4)  # noqa: E731
    monkeypatch.setitem(schedules, "OneCycleLR", longer)
    untouched(tmp_path / "c", 9, "total_steps=20 there, total_steps=36 here", sched="OneCycleLR")


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "c"
    run(1, path)
    whole = path.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        untouched(path, 2, "not a whole safetensors file")


def test_a_bit_that_turned_over(tmp_path):
    path = tmp_path / "c"
    run(1, path)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(100):
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        untouched(path, 2, r"not a whole|damaged|no checkpoint|of format")


def test_from_a_newer_version(tmp_path, monkeypatch):
    monkeypatch.setattr(ckpt, "_format", 2)
    run(1, tmp_path / "c")
    monkeypatch.undo()
    untouched(tmp_path / "c", 2, "format 2; this slowconv knows 1")


def test_other_files(tmp_path):
    path = tmp_path / "c"
    save_file(network().state_dict(), path)
    untouched(path, 1, "no checkpoint of fit")
    torch.save(network().state_dict(), path)
    untouched(path, 1, "not a whole safetensors file")


def test_a_folder_and_no_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        run(1, tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        run(1, tmp_path / "none" / "c")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk(step, tmp_path, monkeypatch):
    "Whichever step it shows in: the old file is whole, nothing else is left, and the run can go on later."
    path = tmp_path / "c"
    run(1, path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "write":
        monkeypatch.setattr(ckpt, "save", lambda *args: b"x" * 10**6)
        resource = pytest.importorskip("resource")
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, old[1]))
        try:
            untouched(path, 2, "could not be written.*stays", OSError)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, ignored)
    else:
        monkeypatch.setattr(os, step, full)
        untouched(path, 2, "could not be written.*No space left", OSError)
    monkeypatch.undo()
    assert same(run(3, path)[0], run(3)[0])


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "c"
    link.symlink_to(tmp_path / "disk" / "c")
    run(1, link)
    run(2, link)
    assert link.is_symlink() and (tmp_path / "disk" / "c").is_file()


def test_what_cannot_be_saved_is_named(tmp_path):
    class Strange(nn.Linear):
        def get_extra_state(self):
            return {"hook": print}

    model = nn.Sequential(nn.Flatten(), Strange(16, 4))
    opt = optim.SGD(model.parameters(), lr=0.1)
    calls = []

    def loss_func(pred, yb):
        calls.append(1)
        return F.cross_entropy(pred, yb)

    with pytest.raises(TypeError, match="model.1._extra_state.hook is a builtin"):
        fit(1, model, loss_func, opt, *loaders(), checkpoint=tmp_path / "c")
    assert not calls, "it is known before the first epoch"


def finish(path, out):
    save_file(run(40, path, "AdamW", "LambdaLR")[0], out)


def test_killed_at_random_moments(tmp_path):
    "SIGKILL, four times in the course of a run; benchmarks/kill_run.py does more of it."
    straight, _ = run(40, opt="AdamW", sched="LambdaLR")
    path, out, rng = tmp_path / "c", tmp_path / "weights", random.Random(0)
    context = multiprocessing.get_context("fork")

    def start():
        process = context.Process(target=finish, args=(path, out))
        process.start()
        return process

    def stamp():
        return path.stat().st_mtime_ns if path.exists() else None

    for _ in range(4):
        before, process, limit = stamp(), start(), time.monotonic() + 60
        while stamp() == before and time.monotonic() < limit:  # until it has got further
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join()
        assert stamp() != before and not out.exists()
    process = start()
    process.join()
    assert process.exitcode == 0
    assert same(load_file(out), straight)
