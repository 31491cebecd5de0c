"The same fit by several processes: the figures of one, each image once; launched in every usual way."

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn, optim
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from slowconv.convs import get_model
from slowconv.data import fashion_collate, get_dls_from_dataset_dict
from slowconv.processes import Share, _answered, turns
from slowconv.training import evaluate, fit

pytest.importorskip("torch.distributed")
root = Path(__file__).parents[1]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def member(i, n, port, f, args, queue):
    os.environ |= {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(n)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        queue.put((i, f(*args), None))
    except BaseException:
        queue.put((i, None, traceback.format_exc()))


def by(n, f, *args, answers=None):
    "What `f` returns in each of `n` processes; started as torchrun does, but forked, which takes no second."
    context = multiprocessing.get_context("fork")
    queue, port = context.Queue(), free_port()
    group = [context.Process(target=member, args=(i, n, port, f, args, queue)) for i in range(n)]
    for process in group:
        process.start()
    try:
        said = sorted((queue.get(timeout=60) for _ in range(answers or n)), key=lambda s: s[0])
    finally:
        for process in group:
            process.join(5)
            process.kill()
    for _, _, error in said:
        assert error is None, error
    return [result for _, result, _ in said]


def images(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 4, 4, generator=g)
    return TensorDataset(x, x.flatten(1).argmax(1) % 4, torch.arange(n))


class Seen:
    "A loss function that keeps what it was called with."

    def __init__(self):
        self.steps = []

    def __call__(self, pred, yb):
        loss = F.cross_entropy(pred, yb)
        if torch.is_grad_enabled():
            self.steps.append((loss.item(), len(yb)))
        return loss


def network(bn=False):
    norm = [nn.BatchNorm2d(4)] if bn else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))


def pairs(batch):
    x, y, _ = zip(*batch, strict=True)
    return torch.stack(x), torch.stack(y)


class Stream(IterableDataset):
    def __init__(self, ds):
        self.ds = ds

    def __iter__(self):
        return (self.ds[int(i)] for i in torch.randperm(len(self.ds)))


kinds = {
    "loader": lambda ds, bs, train: DataLoader(ds, bs, shuffle=train, collate_fn=pairs),
    "workers": lambda ds, bs, train: DataLoader(ds, bs, train, collate_fn=pairs, num_workers=1),
    "list": lambda ds, bs, train: list(DataLoader(ds, bs, shuffle=train, collate_fn=pairs)),
    "stream": lambda ds, bs, train: DataLoader(Stream(ds), bs, collate_fn=pairs),
}


def train(n, bs, n_valid=13, kind="loader", epochs=2, prepare=None, sched=False, **kwargs):
    "Train; (step losses, figures, weights, lr, what was printed is not looked at)."
    torch.manual_seed(0)
    model, loss_func = network(kwargs.pop("bn", False)), Seen()
    opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_dl = kinds[kind](images(n), bs, True)
    valid_dl = kinds[kind](images(n_valid, 1), bs, False)
    steps = epochs * -(-n // bs)
    if sched:
        sched = optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=steps)
    inside = model
    if prepare is not None:
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration

        acc = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**prepare))
        model, opt, train_dl, valid_dl = acc.prepare(model, opt, train_dl, valid_dl)
    result = fit(epochs, model, loss_func, opt, train_dl, valid_dl, sched=sched or None, **kwargs)
    history = [{k: v for k, v in r.items() if k != "seconds"} for r in result.history]
    state = {k: v.tolist() for k, v in inside.state_dict().items()}
    return loss_func.steps, [*result], history, state, opt.param_groups[0]["lr"]


def same_run(parts, one):
    "Step by step, and at the end."
    n_steps = len(one[0])
    rest = [list(p[0]) for p in parts]  # a process without a label calls no loss function
    for loss, n in one[0]:
        taken = []
        for steps in rest:
            if steps and sum(k for _, k in taken) < n:
                taken.append(steps.pop(0))
        assert sum(k for _, k in taken) == n
        assert sum(v * k for v, k in taken) / n == pytest.approx(loss, abs=1e-5)
    assert not any(rest) and n_steps
    for part in parts:
        assert part[1] == pytest.approx(one[1], abs=1e-5)
        assert len(part[2]) == len(one[2])
        for a, b in zip(part[2], one[2], strict=True):
            assert a == pytest.approx(b, abs=1e-5)
        for k, v in one[3].items():
            torch.testing.assert_close(torch.tensor(part[3][k]), torch.tensor(v), atol=1e-5, rtol=0)
        assert part[1:4] == parts[0][1:4], "each has the same figures and weights, to the last bit"


# sharing out


@given(st.integers(0, 40), st.integers(1, 7))
def test_turns_share_out_each_batch_once(n_batches, n):
    shares = [list(turns(range(n_batches), n, i)) for i in range(n)]
    assert sorted(b for share in shares for b, counts in share if counts) == list(range(n_batches))
    assert {len(share) for share in shares} == {-(-n_batches // n)}


@pytest.mark.parametrize("n, bs", [(64, 16), (61, 16), (33, 8), (17, 8), (3, 8), (1, 1)])
@pytest.mark.parametrize("processes", [2, 3])
def test_the_losses_of_one_process(processes, n, bs):
    "Whatever the last batch: also where a process has none."
    one = train(n, bs * processes, n_valid=n)
    same_run(by(processes, train, n, bs, n), one)


def lesson(bs):
    "The lesson's network in double precision: in single, rounding alone takes two long runs apart."
    torch.manual_seed(42)
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(300, 1, 28, 28, generator=g).double(), torch.arange(300) % 10
    ds, model = TensorDataset(x, y), get_model().cpu().double()
    opt = optim.SGD(model.parameters(), lr=0.1)
    dls = DataLoader(ds, bs, shuffle=True), DataLoader(ds, bs)
    return [r["training loss"] for r in fit(4, model, F.cross_entropy, opt, *dls).history]


def test_nothing_but_rounding_differs():
    want = lesson(64)
    for got in by(2, lesson, 32):
        assert got == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("kind", ["workers", "list", "stream"])
def test_whatever_the_loader(kind):
    same_run(by(2, train, 41, 8, 29, kind), train(41, 16, 29, kind))


@pytest.mark.parametrize("even", [True, False])
def test_what_accelerate_has_prepared(even):
    pytest.importorskip("accelerate")
    parts = by(2, train, 41, 8, 29, "loader", 2, {"even_batches": even})
    assert parts[0][1:4] == parts[1][1:4]
    # the order of the images is Accelerate's own; the figures are those of the weights
    model = network()
    model.load_state_dict({k: torch.tensor(v) for k, v in parts[0][3].items()})
    valid = kinds["loader"](images(29, 1), 8, False)
    assert parts[0][1] == pytest.approx(evaluate(model, F.cross_entropy, valid), abs=1e-6)
    for epoch in range(2):
        seen = [p[0][3 * epoch : 3 * (epoch + 1)] for p in parts]
        assert sum(n for steps in seen for _, n in steps) == 41


def prepared_order(even):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    torch.manual_seed(0)
    acc = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=even))
    dl = acc.prepare(DataLoader(images(41), 8, shuffle=True))
    share = Share(dl)
    return [[i for _, _, idxs in share for i in idxs.tolist()] for _ in range(2)], len(share)


@pytest.mark.parametrize("even", [True, False])
def test_a_prepared_loader_gives_each_image_once(even):
    pytest.importorskip("accelerate")
    (a, n), (b, _) = by(2, prepared_order, even)
    assert n == 3
    for epoch in range(2):
        assert sorted(a[epoch] + b[epoch]) == list(range(41))
    assert a[0] != a[1]


def split_batches():
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    acc = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    with pytest.raises(ValueError, match="split_batches=True"):
        Share(acc.prepare(DataLoader(images(41), 8)))


def test_split_batches_are_refused():
    pytest.importorskip("accelerate")
    by(2, split_batches)


def prepared_stream(dispatch):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    torch.manual_seed(0)
    config = DataLoaderConfiguration(dispatch_batches=dispatch)
    dl = Accelerator(cpu=True, dataloader_config=config).prepare(DataLoader(Stream(images(41)), 8))
    if not dispatch:
        with pytest.raises(ValueError, match="a stream that Accelerate has cut up"):
            Share(dl)
        return []
    return [i for _, _, idxs in Share(dl) for i in idxs.tolist()]


@pytest.mark.parametrize("dispatch", [True, False])
def test_a_prepared_stream(dispatch):
    pytest.importorskip("accelerate")
    a, b = by(2, prepared_stream, dispatch)
    assert sorted(a + b) == (list(range(41)) if dispatch else [])


def unseeded(n):
    torch.manual_seed(100 + int(os.environ["RANK"]))
    model = network()
    opt = optim.SGD(model.parameters(), lr=0.1)
    dls = [kinds["loader"](images(n), 8, t) for t in (True, False)]
    fit(1, model, F.cross_entropy, opt, *dls)
    share = Share(DataLoader(images(n), 8, shuffle=True))
    seen = [i for _, _, idxs in share for i in idxs.tolist()]
    return [p.tolist() for p in model.parameters()], seen, torch.rand(2).tolist()


def test_processes_that_begin_with_other_random_numbers():
    "One model and one order, and afterwards random numbers of their own."
    a, b = by(2, unseeded, 41)
    assert a[0] == b[0]
    assert sorted(a[1] + b[1]) == list(range(41))
    assert a[2] != b[2]


def test_batch_norm_counts_the_same_in_all():
    a, b = by(2, train_bn)
    assert a == b


def train_bn():
    return train(41, 8, bn=True)[1:4]


def test_a_schedule_takes_a_step_for_each_batch():
    lrs = {part[4] for part in by(2, train, 41, 8, 13, "loader", 2, None, True)}
    (lr,) = lrs
    assert lr == pytest.approx(train(41, 8, sched=True)[4])  # the end of the cycle


def only_evaluate():
    torch.manual_seed(0)
    valid = kinds["loader"](images(29, 1), 8, False)
    model = network()
    opt = optim.SGD(model.parameters(), lr=0.1)
    return [*fit(0, model, F.cross_entropy, opt, [], valid)]


def test_no_epochs_only_evaluate():
    want = only_evaluate()
    for got in by(2, only_evaluate):
        assert got == pytest.approx(want, abs=1e-6)


# streams


def made(shards, opened):
    "Images [1,4,4] whose first pixel is their number; notes which shards were opened."
    for lo, hi in shards:
        opened.append(lo)
        for i in range(lo, hi):
            image = images(60)[i][0].clone()
            image[0, 0, 0] = i / 255
            yield {"image": image, "label": i % 4}


def stream(n, n_shards, opened):
    cuts = [n * i // n_shards for i in range(n_shards + 1)]
    shards = list(zip(cuts[:-1], cuts[1:], strict=True))
    make = datasets.IterableDataset.from_generator
    return make(partial(made, opened=opened), gen_kwargs={"shards": shards})


def streams(n, n_shards, opened, **kwargs):
    dsd = {k: stream(n, n_shards, opened) for k in ("train", "test")}
    return get_dls_from_dataset_dict(dsd, fashion_collate, **kwargs)


def numbers(batches):
    return [round(i * 255) for xb, _ in batches for i in xb[:, 0, 0, 0].tolist()]


def shared_stream(n, n_shards, workers):
    torch.distributed.init_process_group("gloo")
    opened = []
    torch.manual_seed(int(os.environ["RANK"]))  # the order is the first one's all the same
    with streams(n, n_shards, opened, bs=4, num_workers=workers) as dls:
        shares = [Share(dl) for dl in (dls.train, dls.train, dls.valid)]
        seen = [numbers(share) for share in shares]
        with pytest.raises(TypeError):
            len(shares[0])
    return seen, len(opened)


@pytest.mark.parametrize("n_shards", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_split_by_process(n_shards, workers):
    (a, opened, *_), (b, *_) = by(2, shared_stream, 41, n_shards, workers)
    for x, y in zip(a, b, strict=True):
        assert sorted(x + y) == list(range(41))
    assert a[0] != a[1] and sorted(a[0]) != a[0], "another order each time"
    if not workers:
        assert opened == 3 * (n_shards // 2 if n_shards % 2 == 0 else n_shards), (
            "its own files only"
        )
        assert a[2] == sorted(a[2]), "validation in order"


def of_a_stream(n, n_shards):
    torch.manual_seed(0)
    model, opened, loss_func = network(), [], Seen()
    opt = optim.SGD(model.parameters(), lr=0.1)
    with streams(n, n_shards, opened, bs=4) as dls:
        result = fit(2, model, loss_func, opt, *dls)
    return [p.tolist() for p in model.parameters()], [*result], [k for _, k in loss_func.steps]


@pytest.mark.parametrize("n, n_shards", [(41, 2), (41, 3), (9, 4), (24, 8)])
def test_fit_on_a_stream(n, n_shards):
    "Shares of unlike length: each image in one step of each epoch, the same weights and figures in both."
    a, b = by(2, of_a_stream, n, n_shards)
    assert a[:2] == b[:2]
    assert sum(a[2]) + sum(b[2]) == 2 * n
    model = network()
    for p, v in zip(model.parameters(), a[0], strict=True):
        p.data = torch.tensor(v)
    with streams(n, n_shards, [], bs=n) as dls:
        assert a[1] == pytest.approx(evaluate(model, F.cross_entropy, dls.valid), abs=1e-6)


def too_short():
    with pytest.raises(ValueError, match="1 of 2 processes found no image"):
        of_a_stream(1, 1)


def test_a_stream_with_less_than_an_image_for_each():
    by(2, too_short)


def of_files(folder):
    files = {"train": f"{folder}/train-*.parquet", "test": f"{folder}/test-*.parquet"}
    dsd = datasets.load_dataset(
        "parquet", data_files=files, streaming=True, cache_dir=f"{folder}/c"
    )
    with get_dls_from_dataset_dict(dsd, fashion_collate, bs=4) as dls:
        shares = dls if not os.environ.get("RANK") else [Share(dl) for dl in dls]
        return [[y for _, yb in share for y in yb.tolist()] for share in shares]


def of_files_by_two(folder):
    torch.distributed.init_process_group("gloo")
    return of_files(folder)


def test_a_folder_of_shards(tmp_path):
    for split in ("train", "test"):
        pngs = [Image.fromarray(np.full((4, 4), i, np.uint8)) for i in range(24)]
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
        ds = datasets.Dataset.from_dict({"image": pngs, "label": list(range(24))}, features)
        for i in range(4):
            ds.shard(4, i).to_parquet(tmp_path / f"{split}-{i}.parquet")
    for parts in ([of_files(tmp_path)], by(2, of_files_by_two, tmp_path)):
        for shares in zip(*parts, strict=True):
            assert sorted(sum(shares, [])) == list(range(24))
            assert len({len(share) for share in shares}) == 1


# when things go wrong


def gone():
    "The second process ends without a word, in its third step."
    calls = []

    def loss_func(pred, yb):
        calls.append(1)
        if len(calls) == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return F.cross_entropy(pred, yb)

    model = network()
    opt = optim.SGD(model.parameters(), lr=0.1)
    dls = [kinds["loader"](images(41), 8, t) for t in (True, False)]
    try:
        fit(4, model, loss_func, opt, *dls)
    except RuntimeError as e:
        return str(e), repr(e.__cause__)


def test_a_process_that_is_gone():
    ((said, cause),) = by(2, gone, answers=1)
    assert "another process has ended" in said and "checkpoint=" in said, cause


def silent(patience):
    "The second process does not answer for a while."
    from slowconv import processes

    processes.patience = patience / 60
    calls = []

    def loss_func(pred, yb):
        calls.append(1)
        if len(calls) == 3 and os.environ["RANK"] == "1":
            time.sleep(4 * patience)
        return F.cross_entropy(pred, yb)

    model = network()
    opt = optim.SGD(model.parameters(), lr=0.1)
    dls = [kinds["loader"](images(41), 8, t) for t in (True, False)]
    with pytest.raises(RuntimeError, match="does not answer"):
        fit(1, model, loss_func, opt, *dls)
    return True


def test_a_process_that_does_not_answer():
    assert by(2, silent, 3) == [True, True]


def test_an_error_of_ones_own_stays_what_it_is():
    for text in ("DataLoader timed out after 5 seconds", "shapes do not fit"):
        with pytest.raises(RuntimeError, match=text), _answered():
            raise RuntimeError(text)


def too_high():
    with pytest.raises(FloatingPointError, match=r"epoch 0, at lr=1e\+30"):
        model = network()
        opt = optim.SGD(model.parameters(), lr=1e30)
        dls = [kinds["loader"](images(41), 8, t) for t in (True, False)]
        fit(2, model, F.cross_entropy, opt, *dls)


def test_a_loss_that_is_no_number_stops_all():
    by(2, too_high)


def interrupted(who):
    calls, before = [], signal.getsignal(signal.SIGINT)

    def loss_func(pred, yb):
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == 5 and (who is None or os.environ["RANK"] == who):
                os.kill(os.getpid(), signal.SIGINT)
        return F.cross_entropy(pred, yb)

    torch.manual_seed(0)
    model = network()
    opt = optim.SGD(model.parameters(), lr=0.1)
    dls = [kinds["loader"](images(41), 8, t) for t in (True, False)]
    result = fit(4, model, loss_func, opt, *dls)
    again = fit(1, model, F.cross_entropy, opt, *dls)
    left = signal.getsignal(signal.SIGINT) == before
    return len(result.history), len(calls), [*again], left


@pytest.mark.parametrize("who", ["0", "1", None])
def test_an_interrupt_of_one_stops_all_at_the_same_step(who):
    a, b = by(2, interrupted, who)
    assert a == b
    assert a[0] == 1 and a[1] == 5 and a[3]


def of_processes(n, path):
    return train(41, 8, epochs=n, checkpoint=path)


def test_a_checkpoint_of_two(tmp_path):
    "Written once, read by both; to the last bit what one run would have given."
    straight = by(2, of_processes, 3, None)
    by(2, of_processes, 1, tmp_path / "c")
    again = by(2, of_processes, 3, tmp_path / "c")
    assert [p[1:4] for p in again] == [p[1:4] for p in straight]
    assert os.listdir(tmp_path) == ["c"]
    with pytest.raises(ValueError, match="a run of 2 processes"):
        of_processes(4, tmp_path / "c")


def wrong_path(path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        train(41, 8, checkpoint=path)


def test_an_error_of_the_first_is_everyones(tmp_path):
    by(2, wrong_path, tmp_path)


# bf16


@pytest.mark.parametrize("how", ["autocast", "accelerator", "launch"])
def test_bf16(how, monkeypatch):
    "Whoever asks for it: the convolutions compute in it, weights and losses stay float32."
    dtypes = set()
    model = network()
    model[0].register_forward_hook(lambda m, i, out: dtypes.add(out.dtype))
    opt = optim.SGD(model.parameters(), lr=0.1)
    dls = [kinds["loader"](images(41), 41, False)] * 2

    def loss_func(pred, yb):
        loss = F.cross_entropy(pred, yb)
        assert loss.dtype is torch.float32
        return loss

    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            result = fit(9, model, loss_func, opt, *dls)
    elif how == "launch":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        result = fit(9, model, loss_func, opt, *dls)
    else:
        accelerate = pytest.importorskip("accelerate")
        acc = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        try:
            prepared, opt, *dls = acc.prepare(model, opt, *dls)
            result = fit(9, prepared, loss_func, opt, *dls)
        finally:
            accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    assert dtypes == {torch.bfloat16}
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert result.history[-1]["training loss"] < result.history[0]["training loss"]


def test_fp16_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="'fp16'; expected 'bf16' or 'no'"):
        train(8, 8)


# launched as a user would


script = """
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from slowconv.training import fit


def main():
    torch.manual_seed(0)
    x = torch.rand(50, 1, 4, 4)
    ds = TensorDataset(x, x.flatten(1).argmax(1) % 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    opt = optim.SGD(model.parameters(), lr=0.5)
    result = fit(3, model, F.cross_entropy, opt, DataLoader(ds, BS, shuffle=True), DataLoader(ds, BS))
    return result


"""
plain = script + "main()\n"
notebook = (
    script + "from accelerate import notebook_launcher\nnotebook_launcher(main, num_processes=2)\n"
)
torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
accelerate = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
]


@pytest.mark.parametrize(
    "command, code",
    [
        ([*torchrun, "--master-port", "{port}"], plain),
        ([*accelerate, "--main_process_port", "{port}"], plain),
        ([sys.executable], notebook),
    ],
    ids=["torchrun", "accelerate launch", "notebook_launcher"],
)
def test_launched(command, code, tmp_path, capsys):
    "The same lines are printed, once, as by one process with batches of twice the size."
    if "accelerate" in str(command) + code:
        pytest.importorskip("accelerate")
    exec(plain.replace("BS", "16"), {})
    want = capsys.readouterr().out.splitlines()
    (tmp_path / "two.py").write_text(code.replace("BS", "8"))
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [c.format(port=free_port()) for c in command]
    two = subprocess.run(
        [*command, "two.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert two.returncode == 0, two.stderr
    got = [line for line in two.stdout.splitlines() if line.startswith("epoch=")]
    assert got == want and len(want) == 3
