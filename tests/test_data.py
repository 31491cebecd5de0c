"From a DatasetDict to batches: any set, any collate function, decoded once where it fits."

import pickle
import warnings
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, default_collate

from slowconv import data
from slowconv.data import (
    ColumnDataset,
    Rows,
    fashion_classes,
    fashion_collate,
    fashion_mnist,
    get_columns,
    get_dls_from_dataset_dict,
    load_images,
)

# fashion_collate

forms = {
    "tensor [28,28]": lambda im: im,
    "tensor [1,28,28]": lambda im: im[None],
    "array [28,28]": lambda im: im.numpy(),
    "array [1,28,28]": lambda im: im[None].numpy(),
    "PIL": lambda im: Image.fromarray(im.numpy()),
    "float in [0,1]": lambda im: im / 255,
    "float64 in [0,1]": lambda im: im.double() / 255,
}


@pytest.mark.parametrize("form", forms)
@pytest.mark.parametrize("n", [1, 13])
def test_fashion_collate(form, n):
    images = torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8)
    images[0, 0, :2] = torch.tensor([0, 255])
    before = images.clone()
    xb, yb = fashion_collate(
        [{"image": forms[form](im), "label": i % 10, "more": "s"} for i, im in enumerate(images)]
    )
    assert (xb.dtype, xb.shape) == (torch.float32, (n, 1, 28, 28))
    assert yb.dtype == torch.int64 and yb.tolist() == [i % 10 for i in range(n)]
    torch.testing.assert_close(xb[:, 0], images.float() / 255)
    assert torch.equal(images, before), "the batch is scaled, not the images in memory"


bad_examples = {
    "no label": ({"image": torch.zeros(2, 2), "other": 1}, "'image', 'other'.*rename_column"),
    "no image": ({"label": 1}, "'label'.*rename_column"),
    "int32": ({"image": torch.zeros(2, 2, dtype=torch.int32), "label": 1}, "int32 from 0 to 0"),
    "floats above 1": ({"image": torch.full((2, 2), 255.0), "label": 1}, "from 255 to 255"),
    "NaN": ({"image": torch.full((2, 2), torch.nan), "label": 1}, "nan"),
    "a hidden label": ({"image": torch.zeros(2, 2), "label": -1}, "labels tensor.*-1"),
    "a string": ({"image": torch.zeros(2, 2), "label": "boot"}, "boot.*class_encode_column"),
    "a float": ({"image": torch.zeros(2, 2), "label": 0.5}, "labels tensor.*0.5"),
}


@pytest.mark.parametrize("case", bad_examples)
def test_examples_that_will_not_do(case):
    example, part = bad_examples[case]
    with pytest.raises(ValueError, match=f"(?s)fashion_collate: .*{part}"):
        fashion_collate([example] * 2)


# get_dls_from_dataset_dict


def rich(dsd):
    "The same with a string, a vector and a number that is no integer per image."
    for name, value in (("s", str), ("vector", lambda i: [i, i + 1]), ("x", lambda i: i / 2)):
        columns = {k: [value(i) for i in ds["idx"]] for k, ds in dsd.items()}
        dsd = datasets.DatasetDict({k: ds.add_column(name, columns[k]) for k, ds in dsd.items()})
    return dsd


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


@pytest.mark.parametrize("form", [None, "torch"])
def test_with_its_defaults_it_gives_what_a_dataloader_of_tensors_gives(dsd, form):
    "Images of PIL, too: the first thing that most people try."
    dsd = rich(dsd)
    dls = get_dls_from_dataset_dict(dsd.with_format(form))
    want = DataLoader(dsd["test"].with_format("torch"), batch_size=32)
    assert len(dls.valid) == len(want) == 2
    for ours, theirs in zip(dls.valid, want, strict=True):
        the_same(ours, theirs)


def augment(scale, examples):
    xb, yb = fashion_collate(examples)
    return xb * scale, yb


wrapped = {
    "itself": fashion_collate,
    "a lambda": lambda examples: fashion_collate(examples),
    "a partial": partial(augment, 1.0),
    "default": default_collate,
    "one's own": lambda examples: [e["idx"] for e in examples],
}


@pytest.mark.parametrize("form", [None, "torch"])
@pytest.mark.parametrize("fn", wrapped.values(), ids=wrapped)
def test_each_image_is_decoded_once_whatever_the_collate_function(dsd, monkeypatch, fn, form):
    decoded, decode = [], datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image,
        "decode_example",
        lambda self, *a, **k: (decoded.append(1), decode(self, *a, **k))[1],
    )
    dls = get_dls_from_dataset_dict(dsd.with_format(form), fn)
    for _ in range(3):
        assert len(list(dls.train)) == 3 and len(list(dls.valid)) == 2
    assert len(decoded) == 70 + 45 + 2, "the first of each is looked at before"


def test_a_collate_function_gets_a_list_of_examples(dsd, sample):
    images, labels = sample["test"]

    def check(examples):
        assert len(examples) in (32, 13) and len(list(examples)) == len(examples)
        for e in (*examples, examples[0], examples[-1]):
            i = int(e["idx"])
            assert torch.equal(e["image"], images[i][None]) and e["label"] == labels[i]
        with pytest.raises(IndexError):
            examples[len(examples)]
        return len(examples)

    assert list(get_dls_from_dataset_dict(dsd, check).valid) == [32, 13]


def test_two_real_dataloaders_train_shuffled(dsd):
    with get_dls_from_dataset_dict(dsd) as dls:
        assert dls._fields == ("train", "valid")
        assert [type(dl) for dl in dls] == [DataLoader, DataLoader]
        assert dls.train.batch_size == dls.valid.batch_size == 32
        assert isinstance(dls.train.sampler, RandomSampler)
        assert isinstance(dls.valid.sampler, SequentialSampler)
        train, valid = dls
    assert (len(train.dataset), len(valid.dataset)) == (70, 45)
    assert len(list(train)) == 3, "the loaders outlive the block"
    with pytest.raises(ZeroDivisionError), dls:
        1 / 0  # noqa: B018


def seen(dl):
    return torch.cat([b["idx"] for b in dl]).tolist()


def test_every_image_once_per_epoch_in_an_order_that_follows_the_seed(dsd):
    dls = get_dls_from_dataset_dict(dsd, bs=16)
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders += [seen(dls.train), seen(dls.train)]
    assert all(sorted(o) == list(range(70)) for o in orders)
    assert orders[:2] == orders[2:4] and orders[0] not in (orders[1], orders[4], list(range(70)))
    assert seen(dls.valid) == list(range(45))


def test_validation_is_preferred_to_test(dsd):
    splits = {"train": dsd["train"], "test": dsd["test"]}
    splits["validation"] = dsd["test"].select([5, 3, 9])
    assert seen(get_dls_from_dataset_dict(splits).valid) == [5, 3, 9]


rng = np.random.default_rng(0)
kinds = {
    "grey": (rng.integers(0, 256, (5, 9, 7), np.uint8), 255),
    "RGB": (rng.integers(0, 256, (5, 32, 20, 3), np.uint8), 255),
    "RGBA": (rng.integers(0, 256, (5, 8, 8, 4), np.uint8), 255),
    "16 bit": (rng.integers(0, 65536, (5, 6, 5), np.uint16), 65535),
    "boolean": (rng.integers(0, 2, (5, 6, 5)).astype(bool), 1),
}


def make_dsd(images, **columns):
    columns = {"image": images, "label": [i % 3 for i in range(len(images))]} | columns
    ds = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    return datasets.DatasetDict(train=ds, test=ds)


@pytest.mark.parametrize("form", [None, "torch"])
@pytest.mark.parametrize("kind", kinds)
def test_images_of_a_kind(kind, form):
    pixels, white = kinds[kind]
    dsd = make_dsd([Image.fromarray(p) for p in pixels]).with_format(form)
    xb, yb = next(iter(get_dls_from_dataset_dict(dsd, fashion_collate).valid))
    want = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    torch.testing.assert_close(xb, torch.tensor((want / white).astype(np.float32)))
    assert yb.tolist() == [0, 1, 2, 0, 1]


def slow_way(dsd, collate_fn=default_collate, part="", **kwargs):
    "The loaders, after one warning for each split that says why they are slow."
    with pytest.warns(UserWarning, match=f"get_dls_from_dataset_dict: decoded again .*{part}") as w:
        dls = get_dls_from_dataset_dict(dsd, collate_fn, **kwargs)
    assert len(w) == 2
    return dls


def test_a_palette_is_not_grey(dsd):
    "A palette image has the colours that a viewer shows, alone and among grey ones."
    grey = Image.fromarray(kinds["grey"][0][0])
    coloured = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).quantize(8)
    xb, _ = next(iter(get_dls_from_dataset_dict(make_dsd([coloured] * 2), fashion_collate).valid))
    want = torch.tensor(np.array(coloured.convert("RGB"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(xb[1], want)
    dls = slow_way(make_dsd([grey, coloured]), fashion_collate, r"1, 9, 7\) in row 0, .* in row 1")
    with pytest.raises(RuntimeError, match="equal size"):
        next(iter(dls.valid))


def test_images_of_unlike_sizes_go_one_by_one():
    images = [Image.new("L", (28, 28)), Image.new("L", (20, 20))]
    dls = slow_way(make_dsd(images), lambda examples: [e["image"].shape for e in examples], "row 1")
    assert list(dls.valid) == [[(1, 28, 28), (1, 20, 20)]]


def test_a_column_that_does_not_stack_is_no_hindrance_to_fashion_collate():
    dsd = make_dsd([Image.new("L", (4, 4))] * 3, boxes=[[1], [1, 2], []])
    xb, yb = next(iter(slow_way(dsd, fashion_collate, "boxes").valid))
    assert xb.shape == (3, 1, 4, 4) and yb.tolist() == [0, 1, 2]


def test_a_set_that_does_not_fit_into_memory(dsd, monkeypatch):
    "It stays where `datasets` maps it, and gives the same batches."
    monkeypatch.setattr(data, "get_columns", partial(get_columns, limit=1000))
    dls = slow_way(dsd, fashion_collate, "0.0 GB are more")
    fast = next(
        iter(DataLoader(ColumnDataset(get_columns(dsd["test"])), 32, collate_fn=fashion_collate))
    )
    the_same(dict(enumerate(next(iter(dls.valid)))), dict(enumerate(fast)))


def test_a_transform_is_applied_each_time(dsd):
    calls = []

    def transform(batch):
        calls.append(1)
        return {"idx": [torch.rand(()) for _ in batch["idx"]]}

    dls = slow_way(dsd.with_transform(transform), part="'custom'")
    a, b = (next(iter(dls.valid))["idx"] for _ in range(2))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("form", [{"columns": ["label", "idx"]}, {"dtype": torch.float32}])
def test_a_format_is_kept(dsd, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dls = get_dls_from_dataset_dict(dsd.with_format("torch", **form))
    want = DataLoader(dsd["test"].with_format("torch", **form), batch_size=32)
    the_same(next(iter(dls.valid)), next(iter(want)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream(dsd, workers):
    "Each example once, shuffled in a new order each time; validation in order."
    stream = {k: ds.to_iterable_dataset(num_shards=2) for k, ds in dsd.items()}
    dls = slow_way(stream, part="a stream", bs=16, num_workers=workers)
    orders = [seen(dls.train) for _ in range(2)]
    assert all(sorted(o) == list(range(70)) for o in orders)
    assert orders[0] != orders[1] and orders[0] != list(range(70))
    assert sorted(seen(dls.valid)) == list(range(45))
    assert next(iter(dls.valid))["image"].shape == (16, 1, 28, 28)
    if not workers:
        torch.manual_seed(3)
        first = seen(dls.train)
        torch.manual_seed(3)
        assert seen(dls.train) == first


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_worker_processes(dsd, how):
    want = list(get_dls_from_dataset_dict(dsd, fashion_collate).valid)
    dls = get_dls_from_dataset_dict(dsd, partial(augment, 1.0), num_workers=2)
    dls.valid.multiprocessing_context = how
    for ours, theirs in zip(dls.valid, want, strict=True):
        the_same(dict(enumerate(ours)), dict(enumerate(theirs)))


def test_what_a_worker_is_sent_can_be_pickled(dsd):
    dls = get_dls_from_dataset_dict(dsd, fashion_collate)
    ds, collate = pickle.loads(pickle.dumps((dls.valid.dataset, dls.valid.collate_fn)))
    assert len(list(DataLoader(ds, batch_size=32, collate_fn=collate))) == 2


bad_dicts = {
    "no train": (lambda d: {"test": d["test"]}, "'train' is missing or empty in"),
    "no valid": (
        lambda d: {"train": d["train"], "tset": d["test"]},
        "'test' is missing or empty in",
    ),
    "empty train": (
        lambda d: {**d, "train": d["train"].select([])},
        "'train' is missing or empty in",
    ),
    "empty valid": (lambda d: {**d, "test": d["test"].select([])}, "'test' is missing or empty in"),
}


@pytest.mark.parametrize("case", bad_dicts)
def test_a_dataset_dict_that_will_not_do(dsd, case):
    make, part = bad_dicts[case]
    with pytest.raises(ValueError, match=f"get_dls_from_dataset_dict: .*{part}"):
        get_dls_from_dataset_dict(make(dsd))


@pytest.mark.parametrize(
    "x",
    [
        "fashion_mnist",
        None,
        [1],
        {"train": [1], "test": [2]},
        datasets.Dataset.from_dict({"a": [1]}),
    ],
)
def test_no_dataset_dict_at_all(x):
    with pytest.raises(TypeError, match="expected a DatasetDict, got "):
        get_dls_from_dataset_dict(x)


@given(n=st.integers(1, 30), draw=st.data())
def test_column_dataset_gives_the_rows_that_are_asked_for(n, draw):
    ds = ColumnDataset({"x": torch.arange(n) * 2, "s": [str(i) for i in range(n)]})
    idxs = draw.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=40))
    rows = ds.__getitems__(idxs)
    assert isinstance(rows, Rows) and len(ds) == n and len(rows) == len(idxs)
    assert list(rows) == [{"x": 2 * i, "s": str(i)} for i in idxs]
    assert rows[:2] == list(rows)[:2]
    assert rows.columns["x"].tolist() == [2 * i for i in idxs]


# fashion_mnist


def test_the_sample_in_batches_with_and_without_with(sample, capsys):
    with fashion_mnist(source="sample") as first:
        pass
    for dls in (first, fashion_mnist(source="sample")):
        assert [type(dl) for dl in dls] == [DataLoader, DataLoader]
        assert (len(dls.train.dataset), len(dls.valid.dataset)) == (5000, 1000)
        assert dls.train.batch_size == 256
        assert isinstance(dls.train.sampler, RandomSampler)
        xb, yb = next(iter(dls.train))
        assert (xb.shape, xb.dtype) == ((256, 1, 28, 28), torch.float32)
        assert (yb.shape, yb.dtype) == ((256,), torch.int64)
        images, labels = sample["test"]
        xs, ys = (torch.cat(c) for c in zip(*dls.valid, strict=True))
        torch.testing.assert_close(xs[:, 0], images / 255)
        assert torch.equal(ys, labels)
    out = capsys.readouterr().out
    assert out == "Fashion-MNIST: 5,000 and 1,000 images, source: sample\n" * 2


def test_only_the_first_process_says_what_it_opens(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    fashion_mnist(source="sample")
    assert capsys.readouterr().out == ""


def test_a_set_that_is_kept_elsewhere():
    "On a device that has no numbers, as there may be no other one here."
    dls = fashion_mnist(source="sample", device="meta")
    assert {v.device.type for dl in dls for v in dl.dataset.columns.values()} == {"meta"}


def test_there_are_ten_classes():
    assert len(fashion_classes) == len(set(fashion_classes)) == 10
    assert fashion_classes[0] == "T-shirt/top" and fashion_classes[9] == "Ankle boot"


@pytest.mark.parametrize("split", ["Train", "tri", None, "validation"])
def test_a_split_that_is_none(split):
    with pytest.raises(ValueError, match=f"load_images: split={split!r}"):
        load_images("fashion_mnist", split, "sample")
