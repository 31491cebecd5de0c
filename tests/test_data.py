"From a DatasetDict to batches."

import inspect
import pickle
import re
from contextlib import ExitStack

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from slowconv.data import (
    fashion_classes,
    fashion_collate,
    fashion_mnist,
    get_dls_from_dataset_dict,
    load_images,
    mnist,
)
from slowconv.loaders import ColumnDataset, get_columns


@pytest.mark.parametrize(
    "f, want",
    [
        (get_dls_from_dataset_dict, {"dsd": ..., "collate_fn": default_collate, "bs": 32}),
        (fashion_collate, {"examples": ...}),
        (fashion_mnist, {"bs": 256}),
        (mnist, {"bs": 256}),
    ],
)
def test_signatures_are_the_contract(f, want):
    params = inspect.signature(f).parameters.values()
    positional = [p for p in params if p.kind is not p.KEYWORD_ONLY]
    assert {p.name: ... if p.default is p.empty else p.default for p in positional} == want
    assert [p.name for p in positional] == list(want)


@pytest.mark.parametrize("f", [fashion_mnist, mnist])
def test_source_is_a_keyword_with_no_default_place(f):
    source = inspect.signature(f).parameters["source"]
    assert source.kind is source.KEYWORD_ONLY and source.default is None


# fashion_collate


def examples_of(images, form):
    forms = {
        "tensor [28,28]": lambda im: im,
        "tensor [1,28,28]": lambda im: im[None],
        "array [28,28]": lambda im: im.numpy(),
        "array [1,28,28]": lambda im: im[None].numpy(),
        "PIL": lambda im: Image.fromarray(im.numpy()),
        "float in [0,1]": lambda im: im / 255,
        "float64 in [0,1]": lambda im: im.double() / 255,
    }
    return [{"image": forms[form](im), "label": i % 10} for i, im in enumerate(images)]


@pytest.mark.parametrize(
    "form",
    [
        "tensor [28,28]",
        "tensor [1,28,28]",
        "array [28,28]",
        "array [1,28,28]",
        "PIL",
        "float in [0,1]",
        "float64 in [0,1]",
    ],
)
@pytest.mark.parametrize("n", [1, 13])
def test_fashion_collate(form, n):
    images = torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8)
    images[0, 0, :2] = torch.tensor([0, 255])
    xb, yb = fashion_collate(examples_of(images, form))
    assert (xb.dtype, xb.shape) == (torch.float32, (n, 1, 28, 28))
    assert (yb.dtype, yb.shape) == (torch.int64, (n,))
    torch.testing.assert_close(xb[:, 0], images.float() / 255)
    assert yb.tolist() == [i % 10 for i in range(n)]
    assert (xb.min(), xb.max()) == (0, 1)


def test_fashion_collate_keeps_the_pixels_it_was_given():
    "The batch is divided by 255, the images in memory are not."
    images = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    before = images.clone()
    fashion_collate(examples_of(images, "tensor [28,28]"))
    fashion_collate({"image": images, "label": torch.tensor([0, 1])})
    assert torch.equal(images, before)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.sampled_from([int, np.int64, torch.tensor]),
)
def test_fashion_collate_takes_labels_of_any_kind(labels, kind):
    _, yb = fashion_collate([{"image": torch.zeros(28, 28), "label": kind(n)} for n in labels])
    assert yb.tolist() == labels and yb.dtype == torch.int64


@pytest.mark.parametrize("kept, lost", [("image", "label"), ("label", "image")])
def test_fashion_collate_without_a_column(kept, lost):
    value = torch.zeros(28, 28) if kept == "image" else 1
    with pytest.raises(ValueError, match=f"no column '{lost}'.*'{kept}', 'other'"):
        fashion_collate([{kept: value, "other": 1}])


def test_fashion_collate_of_pixels_it_cannot_scale():
    with pytest.raises(ValueError, match="int32"):
        fashion_collate([{"image": torch.zeros(28, 28, dtype=torch.int32), "label": 1}])


# get_dls_from_dataset_dict


def the_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for k in a:
            the_same(a[k], b[k])
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


def rich(dsd):
    "The same with a text, a vector and a number that is no integer per image."
    for name, value in (("text", str), ("vector", lambda i: [i, i + 1]), ("x", lambda i: i / 2)):
        dsd = datasets.DatasetDict(
            {k: ds.add_column(name, [*map(value, ds["idx"])]) for k, ds in dsd.items()}
        )
    return dsd


@pytest.mark.parametrize(
    "form",
    [{}, {"columns": ["label", "idx"]}, {"dtype": torch.float32}],
    ids=["all", "some columns", "a dtype"],
)
def test_default_collate_gives_what_a_plain_dataloader_gives(dsd, form):
    dsd = (dsd if form else rich(dsd)).with_format("torch", **form)
    plain = DataLoader(dsd["test"], batch_size=16)
    with get_dls_from_dataset_dict(dsd, bs=16) as dls:
        assert len(dls.valid) == len(plain) == 3
        for ours, theirs in zip(dls.valid, plain, strict=True):
            the_same(ours, theirs)


def test_two_real_dataloaders_train_shuffled(dsd):
    with get_dls_from_dataset_dict(dsd.with_format("torch")) as dls:
        assert dls._fields == ("train", "valid")
        assert [type(dl) for dl in dls] == [DataLoader, DataLoader]
        assert dls.train.batch_size == dls.valid.batch_size == 32
        assert isinstance(dls.train.sampler, RandomSampler)
        assert isinstance(dls.valid.sampler, SequentialSampler)
        assert (len(dls.train.dataset), len(dls.valid.dataset)) == (70, 45)
        train, valid = dls
        assert (len(train), len(valid)) == (3, 2)


def seen(dl):
    return torch.cat([b["idx"] for b in dl]).tolist()


def test_every_image_once_per_epoch_in_another_order_each_time(dsd):
    with get_dls_from_dataset_dict(dsd.with_format("torch"), bs=16) as dls:
        first, second = seen(dls.train), seen(dls.train)
        assert sorted(first) == sorted(second) == list(range(70))
        assert first != second and first != sorted(first)
        assert seen(dls.valid) == seen(dls.valid) == list(range(45))


def test_the_order_follows_the_seed(dsd):
    with get_dls_from_dataset_dict(dsd.with_format("torch")) as dls:
        orders = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            orders.append(seen(dls.train))
    assert orders[0] == orders[1] != orders[2]


def test_the_loaders_outlive_the_block(dsd):
    with get_dls_from_dataset_dict(dsd.with_format("torch")) as dls:
        pass
    for _ in range(2):
        assert sorted(seen(dls.train)) == list(range(70))
        assert seen(dls.valid) == list(range(45))


def test_an_error_in_the_block_gets_out(dsd):
    with pytest.raises(ZeroDivisionError), get_dls_from_dataset_dict(dsd.with_format("torch")):
        1 / 0  # noqa: B018


def as_tensor(im):
    return im if isinstance(im, torch.Tensor) else torch.tensor(np.array(im))


def examples_and_more(examples):
    assert isinstance(examples, list) and all(isinstance(e, dict) for e in examples)
    assert all({"image", "label", "idx"} == set(e) for e in examples)
    return examples


@pytest.mark.parametrize("form", ["torch", "numpy", None])
def test_a_collate_function_of_ones_own_gets_a_list_of_examples(dsd, form):
    plain = DataLoader(dsd.with_format(form)["test"], batch_size=16, collate_fn=examples_and_more)
    with get_dls_from_dataset_dict(dsd.with_format(form), examples_and_more, 16) as dls:
        for ours, theirs in zip(dls.valid, plain, strict=True):
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                assert {k: type(v) for k, v in a.items()} == {k: type(v) for k, v in b.items()}
                assert a["idx"] == b["idx"]
                assert torch.equal(*(as_tensor(e["image"]) for e in (a, b)))
        ids = [int(e["idx"]) for b in dls.train for e in b]
    assert sorted(ids) == list(range(70)) and ids != list(range(70))


@pytest.mark.parametrize("form", ["torch", "numpy", None])
def test_fashion_collate_over_any_format(dsd, sample, form):
    with get_dls_from_dataset_dict(dsd.with_format(form), fashion_collate, bs=45) as dls:
        xb, yb = next(iter(dls.valid))
    images, labels = sample["test"]
    torch.testing.assert_close(xb[:, 0], images[:45] / 255)
    assert torch.equal(yb, labels[:45])


def test_a_lambda_that_calls_fashion_collate_gives_the_same(dsd):
    with ExitStack() as stack:
        fns = fashion_collate, lambda examples: fashion_collate(examples)
        batches = []
        for fn in fns:
            dls = stack.enter_context(get_dls_from_dataset_dict(dsd.with_format("torch"), fn))
            batches.append(next(iter(dls.valid)))
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


@pytest.mark.parametrize("other", ["validation", "test"])
def test_validation_is_preferred_to_test(dsd, other):
    splits = datasets.DatasetDict(train=dsd["train"], test=dsd["test"])
    splits[other] = dsd["test"].select(range(7))
    if other == "test":
        del splits["test"]
        splits["test"] = dsd["test"].select(range(7))
    with get_dls_from_dataset_dict(splits.with_format("torch")) as dls:
        assert len(dls.valid.dataset) == 7
        assert len(dls.train.dataset) == 70


def test_a_plain_dict_of_splits_will_do(dsd):
    with get_dls_from_dataset_dict(dict(dsd.with_format("torch"))) as dls:
        assert len(seen(dls.train)) == 70


def test_a_split_that_was_sorted_or_picked_keeps_its_order(dsd):
    dsd = dsd.with_format("torch")
    dsd["test"] = dsd["test"].select([5, 3, 9])
    with get_dls_from_dataset_dict(dsd) as dls:
        assert seen(dls.valid) == [5, 3, 9]


def ids(examples):
    return [int(e["idx"]) for e in examples]


@pytest.mark.parametrize("collate_fn", [default_collate, fashion_collate, ids])
def test_worker_processes(dsd, collate_fn):
    dsd = dsd.with_format("torch")
    with get_dls_from_dataset_dict(dsd, collate_fn, num_workers=2) as dls:
        assert dls.train.num_workers == dls.valid.num_workers == 2
        with get_dls_from_dataset_dict(dsd, collate_fn) as alone:
            ours, theirs = list(dls.valid), list(alone.valid)
    for a, b in zip(ours, theirs, strict=True):
        a, b = (list(x.values()) if isinstance(x, dict) else list(x) for x in (a, b))
        assert all(
            torch.equal(torch.as_tensor(p), torch.as_tensor(q)) for p, q in zip(a, b, strict=True)
        )


def test_what_a_worker_is_sent_can_be_pickled(dsd):
    "Windows and macOS start workers afresh, and send them the data set and the collate function."
    for fn in (default_collate, fashion_collate):
        with get_dls_from_dataset_dict(dsd.with_format("torch"), fn) as dls:
            ds, collate = pickle.loads(pickle.dumps((dls.valid.dataset, dls.valid.collate_fn)))
            again = DataLoader(ds, batch_size=32, collate_fn=collate)
            assert len(list(again)) == 2


def test_each_image_is_decoded_once(dsd, monkeypatch):
    decoded = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image,
        "decode_example",
        lambda self, *a, **k: (decoded.append(1), decode(self, *a, **k))[1],
    )
    with get_dls_from_dataset_dict(dsd.with_format("torch"), fashion_collate) as dls:
        for _ in range(3):
            list(dls.train), list(dls.valid)
    assert len(decoded) <= 70 + 45 + 4, "more than a look at the first rows besides"


def change(dsd, f):
    return datasets.DatasetDict({k: f(ds) for k, ds in dsd.items()})


bad_dicts = {
    "no train": (lambda d: datasets.DatasetDict(test=d["test"]), '"train".*test'),
    "no valid": (
        lambda d: datasets.DatasetDict(train=d["train"], tset=d["test"]),
        '"validation" or "test".*tset',
    ),
    "no split": (lambda d: datasets.DatasetDict(), r'"train".*\[\]'),
    "empty train": (
        lambda d: datasets.DatasetDict(train=d["train"].select([]), test=d["test"]),
        "'train' is empty",
    ),
    "empty valid": (
        lambda d: datasets.DatasetDict(train=d["train"], test=d["test"].select([])),
        "'test' is empty",
    ),
    "no image": (
        lambda d: change(d, lambda ds: ds.remove_columns("image")),
        "images in 'train', only .*label",
    ),
    "no label": (
        lambda d: change(d, lambda ds: ds.remove_columns("label")),
        "labels in 'train', only .*image",
    ),
    "no image in test": (
        lambda d: datasets.DatasetDict(train=d["train"], test=d["test"].remove_columns("image")),
        "images in 'test'",
    ),
}


@pytest.mark.parametrize("case", bad_dicts)
@pytest.mark.parametrize("collate_fn", [default_collate, fashion_collate, ids])
def test_a_dataset_dict_that_will_not_do(dsd, case, collate_fn):
    make, part = bad_dicts[case]
    with pytest.raises(ValueError, match=part):
        with get_dls_from_dataset_dict(make(dsd.with_format("torch")), collate_fn):
            pytest.fail("it was opened")


@pytest.mark.parametrize("x", ["fashion_mnist", None, [1]])
def test_no_dataset_dict_at_all(x):
    with pytest.raises(TypeError, match=type(x).__name__):
        with get_dls_from_dataset_dict(x):
            pytest.fail("it was opened")


def test_a_dataset_in_place_of_a_dict(dsd):
    with pytest.raises(TypeError, match="Dataset"):
        with get_dls_from_dataset_dict(dsd["train"]):
            pytest.fail("it was opened")


def test_pil_images_and_default_collate(dsd):
    with pytest.raises(TypeError, match="PIL.*with_format"):
        with get_dls_from_dataset_dict(dsd):
            pytest.fail("it was opened")


@pytest.mark.parametrize("bs", [0, -1, 2.5, "32", None])
def test_batches_of_a_size_that_cannot_be(dsd, bs):
    part = re.escape(f"bs={bs!r}")
    with pytest.raises(ValueError, match=part):
        with get_dls_from_dataset_dict(dsd.with_format("torch"), bs=bs):
            pytest.fail("it was opened")
    for open_ in (fashion_mnist, mnist):
        with pytest.raises(ValueError, match=part):
            with open_(bs, source="/nowhere"):
                pytest.fail("it was opened")


def test_images_of_unlike_sizes_are_an_error_of_the_right_type(dsd):
    images = [Image.new("L", (28, 28)), Image.new("L", (20, 20))] * 4
    ds = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 4})
    ds = ds.cast_column("image", datasets.Image())
    with pytest.raises((ValueError, RuntimeError)):
        with get_dls_from_dataset_dict({"train": ds, "test": ds}, fashion_collate) as dls:
            next(iter(dls.valid))


# columns in memory


@given(n=st.integers(1, 30), data=st.data())
def test_column_dataset_gives_the_rows_that_are_asked_for(n, data):
    columns = {"x": torch.arange(n) * 2, "text": [str(i) for i in range(n)]}
    idxs = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=40))
    one_by_one, whole = ColumnDataset(columns), ColumnDataset(columns, whole=True)
    assert len(one_by_one) == len(whole) == n
    assert one_by_one.__getitems__(idxs) == [{"x": 2 * i, "text": str(i)} for i in idxs]
    batch = whole.__getitems__(idxs)
    assert batch["x"].tolist() == [2 * i for i in idxs]
    assert batch["text"] == [str(i) for i in idxs]


def test_get_columns_of_more_rows_than_it_takes_at_a_time():
    n = 2345
    ds = datasets.Dataset.from_dict({"i": list(range(n)), "t": [str(i) for i in range(n)]})
    columns = get_columns(ds)
    assert columns["i"].tolist() == list(range(n))
    assert columns["t"] == [str(i) for i in range(n)]


# fashion_mnist and mnist


def test_the_sample_in_batches(sample, capsys):
    with fashion_mnist(source="sample") as dls:
        assert [type(dl) for dl in dls] == [DataLoader, DataLoader]
        assert (len(dls.train.dataset), len(dls.valid.dataset)) == (5000, 1000)
        assert dls.train.batch_size == 256
        assert isinstance(dls.train.sampler, RandomSampler)
        assert isinstance(dls.valid.sampler, SequentialSampler)
        xb, yb = next(iter(dls.train))
        assert (xb.shape, xb.dtype) == ((256, 1, 28, 28), torch.float32)
        assert (yb.shape, yb.dtype) == ((256,), torch.int64)
        assert 0 <= xb.min() and 0.9 < xb.max() <= 1
        images, labels = sample["test"]
        xs, ys = (torch.cat(c) for c in zip(*dls.valid, strict=True))
    torch.testing.assert_close(xs[:, 0], images / 255)
    assert torch.equal(ys, labels)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and "5,000" in out and "1,000" in out and "sample" in out


def test_every_image_of_the_train_split_once_per_epoch(sample):
    "Known by its bytes and its label."

    def rows(images, labels):
        both = torch.cat([images.flatten(1), labels[:, None].to(torch.uint8)], 1)
        return sorted(row.tobytes() for row in both.numpy())

    with fashion_mnist(333, source="sample") as dls:
        pass
    want = rows(*sample["train"])
    for _ in range(2):
        xs, ys = (torch.cat(c) for c in zip(*dls.train, strict=True))
        assert rows((xs[:, 0] * 255).round().to(torch.uint8), ys) == want


def test_a_set_that_is_kept_elsewhere():
    "On a device that has no numbers, as there may be no other one here."
    columns = {k: torch.zeros(4, 2, device="meta") for k in ("image", "label")}
    batch = ColumnDataset(columns, whole=True).__getitems__([2, 0, 1])
    assert all(v.device.type == "meta" and v.shape == (3, 2) for v in batch.values())
    with fashion_mnist(source="sample", device="meta") as dls:
        assert {v.device.type for dl in dls for v in dl.dataset.columns.values()} == {"meta"}
    with pytest.raises(ValueError, match="num_workers=2 on cuda"):
        with fashion_mnist(source="sample", num_workers=2, device="cuda"):
            pytest.fail("it was opened")


def test_worker_processes_for_fashion_mnist():
    with fashion_mnist(500, source="sample", num_workers=2) as dls:
        assert dls.train.num_workers == 2
        assert sum(len(yb) for _, yb in dls.train) == 5000


def test_there_are_ten_classes():
    assert len(fashion_classes) == len(set(fashion_classes)) == 10
    assert fashion_classes[0] == "T-shirt/top" and fashion_classes[9] == "Ankle boot"


def test_load_images_gives_bytes_and_labels():
    images, labels = load_images("fashion_mnist", "test", "sample")
    assert (images.shape, images.dtype) == ((1000, 28, 28), torch.uint8)
    assert (labels.shape, labels.dtype) == ((1000,), torch.int64)
