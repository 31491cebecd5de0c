"Sets of images of every kind: what PyTorch's own DataLoader would give, or one clear error."

import io
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from slowconv.data import fashion_collate, get_dls_from_dataset_dict


def png(im):
    file = io.BytesIO()
    im.save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def split(images, label=None, **more):
    n = len(images)
    features = {"image": datasets.Image(), "label": label or datasets.Value("int64")}
    rows = {"image": [png(im) for im in images], "label": list(range(n)), **more}
    guessed = datasets.Dataset.from_dict(more).features if more else {}
    return datasets.Dataset.from_dict(rows, datasets.Features(**features, **guessed))


def both(images, **kwargs):
    ds = split(images, **kwargs)
    return datasets.DatasetDict(train=ds, test=ds)


rng = np.random.default_rng(0)
kinds = {
    "grey": [Image.fromarray(rng.integers(0, 256, (9, 7), np.uint8)) for _ in range(5)],
    "RGB": [Image.fromarray(rng.integers(0, 256, (32, 20, 3), np.uint8)) for _ in range(5)],
    "RGBA": [Image.fromarray(rng.integers(0, 256, (8, 8, 4), np.uint8)) for _ in range(5)],
    "16 bit": [Image.fromarray(rng.integers(0, 65536, (6, 5), np.uint16)) for _ in range(5)],
    "boolean": [Image.fromarray(rng.integers(0, 2, (6, 5)).astype(bool)) for _ in range(5)],
}


@pytest.mark.parametrize("kind", kinds)
@pytest.mark.parametrize("form", ["torch", None])
def test_images_of_a_kind(kind, form):
    images = kinds[kind]
    with get_dls_from_dataset_dict(both(images).with_format(form), fashion_collate, bs=2) as dls:
        xb = torch.cat([xb for xb, _ in dls.valid])
    arrays = np.stack([np.array(im) for im in images])
    want = arrays / {np.dtype("uint16"): 65535, np.dtype("bool"): 1}.get(arrays.dtype, 255)
    want = want[:, None] if want.ndim == 3 else want.transpose(0, 3, 1, 2)
    assert xb.dtype == torch.float32
    torch.testing.assert_close(xb, torch.from_numpy(want).float())


@pytest.mark.parametrize("kind", kinds)
def test_default_collate_gives_what_pytorch_gives(kind):
    dsd = both(kinds[kind]).with_format("torch")
    with get_dls_from_dataset_dict(dsd, bs=2) as dls:
        for a, b in zip(dls.valid, DataLoader(dsd["test"], 2), strict=True):
            assert list(a) == list(b)
            assert all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


odd_columns = {
    "texts": [f"t{i}" for i in range(5)],
    "vectors": [[i, 1.5] for i in range(5)],
    "dicts": [{"a": i, "b": str(i)} for i in range(5)],
    "dates": [float(i) for i in range(5)],
}


@pytest.mark.parametrize("name", odd_columns)
@pytest.mark.filterwarnings("ignore:get_dls_from_dataset_dict")
def test_more_columns_give_what_pytorch_gives(name):
    dsd = both(kinds["grey"], more=odd_columns[name]).with_format("torch")
    with get_dls_from_dataset_dict(dsd, bs=2) as dls:
        ours, theirs = list(dls.valid), list(DataLoader(dsd["test"], 2))
    assert repr(ours) == repr(theirs)
    with get_dls_from_dataset_dict(dsd, fashion_collate, bs=2) as dls:
        assert [len(yb) for _, yb in dls.valid] == [2, 2, 1]


def test_columns_that_nobody_asks_for_are_no_hindrance(recwarn):
    "fashion_collate wants two columns; what cannot be stacked beside them does not matter."
    dsd = both(kinds["grey"], box=[[1] * i for i in range(5)])
    with get_dls_from_dataset_dict(dsd, fashion_collate, bs=2) as dls:
        assert sorted(dls.train.dataset.columns) == ["image", "label"]
    assert not [w for w in recwarn if w.category is UserWarning]


def test_images_of_unlike_sizes():
    images = [Image.new("L", (5 + i % 2, 5), i) for i in range(6)]
    dsd = both(images).with_format("torch")

    def corner(examples):
        return torch.stack([e["image"][:, :4, :4] for e in examples])

    with pytest.warns(UserWarning, match="'image': its values do not stack.*slower") as said:
        with get_dls_from_dataset_dict(dsd, corner, bs=4) as dls:
            ours = list(dls.valid)
            assert len(list(dls.train)) == 2
    assert len(said) == 1
    theirs = list(DataLoader(dsd["test"], 4, collate_fn=corner))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_pil_images_and_default_collate_even_in_one_split():
    dsd = both(kinds["grey"])
    mixed = {"train": dsd["train"].with_format("torch"), "test": dsd["test"]}
    for d in (dsd, mixed):
        with pytest.raises(TypeError, match='with_format.*"torch".*fashion_collate'):
            with get_dls_from_dataset_dict(d):
                pytest.fail("it was opened")


def test_labels_that_are_texts():
    dsd = both(kinds["grey"])
    dsd = dsd.cast_column("label", datasets.Value("string"))
    with get_dls_from_dataset_dict(dsd, fashion_collate) as dls:
        with pytest.raises(ValueError, match="'0'.*whole number.*class_encode_column"):
            next(iter(dls.valid))
    with get_dls_from_dataset_dict(dsd.class_encode_column("label"), fashion_collate) as dls:
        assert next(iter(dls.valid))[1].tolist() == [0, 1, 2, 3, 4]


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize("label", [2.0, 0.5, nan, inf, 1e30, None, [1, 2], [], "1"])
def test_labels_are_whole_numbers(label):
    examples = [
        {"image": torch.zeros(3, 3), "label": 1.0},
        {"image": torch.zeros(3, 3), "label": label},
    ]
    if label == 2.0:
        assert fashion_collate(examples)[1].tolist() == [1, 2]
    else:
        with pytest.raises(ValueError, match="expected a whole number"):
            fashion_collate(examples)


@pytest.mark.parametrize("image", [None, "a.png", {}, np.zeros(3), torch.zeros(2, 3, 3)])
def test_what_is_no_image(image):
    with pytest.raises(ValueError, match="no image|expected"):
        fashion_collate([{"image": image, "label": 1}])


@pytest.mark.parametrize("high, low", [(221.0, 0.0), (1.0, -0.1), (nan, 0.0)])
def test_floats_that_are_no_share_of_white(high, low):
    image = torch.tensor([[high, low]])
    with pytest.raises(ValueError, match=r"expected.*floats in \[0,1\]"):
        fashion_collate([{"image": image, "label": 1}])


def test_batches_of_unlike_lengths_and_of_nothing():
    with pytest.raises(ValueError, match="2 images and 1 labels"):
        fashion_collate({"image": torch.zeros(2, 3, 3), "label": torch.tensor([1])})
    with pytest.raises(ValueError, match="no examples"):
        fashion_collate([])


def test_images_of_unlike_types_are_not_mixed():
    "A white pixel of a boolean image is 1, of a grey one 255."
    images = [Image.new("1", (3, 3), 1), Image.new("L", (3, 3), 255)]
    with pytest.raises(ValueError, match="unlike kinds.*bool.*uint8"):
        fashion_collate([{"image": im, "label": 1} for im in images])


def test_a_column_that_one_example_lacks():
    examples = [{"image": torch.zeros(3, 3), "label": 1}, {"image": torch.zeros(3, 3)}]
    with pytest.raises(ValueError, match=r"among \['image'\]"):
        fashion_collate(examples)


def test_a_palette_is_no_grey():
    images = [Image.new("P", (3, 3), 7) for _ in range(3)]
    dsd = both(images)
    for form in (None, "torch"):
        with pytest.raises(ValueError, match='palette.*cast_column.*mode="RGB"'):
            with get_dls_from_dataset_dict(dsd.with_format(form), fashion_collate):
                pytest.fail("it was opened")
    dsd = dsd.cast_column("image", datasets.Image(mode="RGB"))
    with get_dls_from_dataset_dict(dsd, fashion_collate) as dls:
        assert next(iter(dls.valid))[0].shape == (3, 3, 3, 3)


def test_colours_from_a_plain_stream():
    images = kinds["RGB"]
    stream = {k: ds.to_iterable_dataset() for k, ds in both(images).items()}
    with get_dls_from_dataset_dict(stream, fashion_collate, bs=5) as dls:
        xb = next(iter(dls.valid))[0]
    want = np.stack([np.array(im) for im in images]).transpose(0, 3, 1, 2) / 255
    torch.testing.assert_close(xb, torch.from_numpy(want).float())


@pytest.mark.parametrize(
    "name, value", [("bs", True), ("bs", 0), ("bs", "8"), ("num_workers", "2")]
)
@pytest.mark.parametrize("bad", [-1, 1.5, None])
def test_numbers_that_are_none(name, value, bad):
    for v in (value, bad):
        with pytest.raises(ValueError, match=f"{name}={v!r}"):
            with get_dls_from_dataset_dict(both(kinds["grey"]), fashion_collate, **{name: v}):
                pytest.fail("it was opened")
    with get_dls_from_dataset_dict(both(kinds["grey"]), fashion_collate, bs=np.int64(3)) as dls:
        assert [len(yb) for _, yb in dls.valid] == [3, 2]


def test_labels_under_another_name():
    dsd = both(kinds["grey"]).rename_column("label", "fine_label")
    with pytest.raises(ValueError, match=r"no labels.*fine_label.*rename_column"):
        with get_dls_from_dataset_dict(dsd):
            pytest.fail("it was opened")


def test_validation_stands_before_test():
    a, b = split(kinds["grey"]), split(kinds["grey"][:2])
    dsd = datasets.DatasetDict(train=a, test=a, validation=b)
    with get_dls_from_dataset_dict(dsd, fashion_collate) as dls:
        assert len(dls.valid.dataset) == 2


@pytest.mark.parametrize("bs, sizes", [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (99, [5])])
@pytest.mark.parametrize("collate_fn", [fashion_collate, default_collate])
def test_sizes_of_batches(bs, sizes, collate_fn):
    dsd = both(kinds["grey"]).with_format("torch")
    with get_dls_from_dataset_dict(dsd, collate_fn, bs) as dls:
        for dl in dls:
            labels = [b["label"] if isinstance(b, dict) else b[1] for b in dl]
            assert [len(yb) for yb in labels] == sizes
            assert sorted(torch.cat(labels).tolist()) == list(range(5))


# streams


def stream(n=50, shards=2):
    images = [Image.new("L", (4, 4), i) for i in range(n)]
    dsd = both(images)
    return datasets.IterableDatasetDict(
        {k: ds.to_iterable_dataset(num_shards=shards) for k, ds in dsd.items()}
    )


@pytest.mark.parametrize("form", ["torch", None])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream(form, workers):
    dsd = stream()
    dsd = dsd.with_format(form) if form else dsd
    with get_dls_from_dataset_dict(dsd, fashion_collate, bs=8, num_workers=workers) as dls:
        epochs = [[n for _, yb in dls.train for n in yb.tolist()] for _ in range(2)]
        valid = [(xb, yb) for xb, yb in dls.valid]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])
    xs, ys = (torch.cat(c) for c in zip(*valid, strict=True))
    assert sorted(ys.tolist()) == list(range(50))
    assert workers or ys.tolist() == list(range(50))
    torch.testing.assert_close(xs[:, 0, 0, 0] * 255, ys.float())


def test_a_stream_has_no_length_and_no_pil_images_for_default_collate():
    with get_dls_from_dataset_dict(stream().with_format("torch"), bs=8) as dls:
        assert next(iter(dls.train))["image"].shape == (8, 1, 4, 4)
        with pytest.raises(TypeError):
            len(dls.train)
    with pytest.raises(TypeError, match="PIL"):
        with get_dls_from_dataset_dict(stream()):
            pytest.fail("it was opened")


def test_a_stream_follows_the_seed():
    orders = []
    with get_dls_from_dataset_dict(stream(), fashion_collate, bs=50) as dls:
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            orders.append(next(iter(dls.train))[1].tolist())
    assert orders[0] == orders[1] != orders[2]


# worker processes that are started afresh, and a mapped set in them


workers_code = """
import sys
import datasets, torch
from slowconv import data, loaders

if __name__ == "__main__":
    torch.multiprocessing.set_start_method(sys.argv[1])
    loaders._is_large = lambda n, size: sys.argv[2] == "mapped"
    dsd = data.fashion_sample()
    dsd = datasets.DatasetDict({k: ds.select(range(40)) for k, ds in dsd.items()})
    with data.get_dls_from_dataset_dict(dsd, data.fashion_collate, 16, num_workers=2) as dls:
        print(type(dls.valid.dataset.columns["image"]).__name__)
        alone = list(torch.utils.data.DataLoader(dls.valid.dataset, 16, collate_fn=data.fashion_collate))
        for (xb, yb), (x, y) in zip(dls.valid, alone, strict=True):
            assert torch.equal(xb, x) and torch.equal(yb, y)
"""


@pytest.mark.parametrize(
    "how, where", [("fork", "mapped"), ("fork", "memory"), ("spawn", "mapped")]
)
def test_worker_processes(tmp_path, how, where):
    if how == "fork" and sys.platform != "linux":
        pytest.skip("no fork here")
    script = tmp_path / "script.py"
    script.write_text(workers_code)
    done = subprocess.run(
        [sys.executable, script, how, where], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["memmap" if where == "mapped" else "Tensor"]


# saved sets whose JSON leads out of their folder


@pytest.mark.parametrize("name", ["../other.arrow", "/etc/passwd", "..", "a/b.arrow", 3])
def test_a_saved_set_that_names_files_elsewhere(dsd, tmp_path, name):
    import json

    from slowconv.data import load_images

    dsd.save_to_disk(tmp_path / "a")
    path = tmp_path / "a" / "train" / "state.json"
    state = json.loads(path.read_text())
    state["_data_files"] = [{"filename": name}]
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="no plain file name"):
        load_images("fashion_mnist", "train", tmp_path / "a")


def test_a_saved_set_with_splits_elsewhere(dsd, tmp_path):
    import json

    from slowconv.data import load_images

    dsd.save_to_disk(tmp_path / "a")
    (tmp_path / "a" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "../b"]}))
    with pytest.raises(ValueError, match="'../b'.*no plain file name"):
        load_images("fashion_mnist", "train", tmp_path / "a")
