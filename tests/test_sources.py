"Where the images come from: files, the system, the hub, the sample, in that order."

import gzip
import http.server
import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow.parquet as pq
import pytest
import requests
import torch
from conftest import digests, digits, idx_bytes, make_folder, sha256, write_idx
from hypothesis import given
from hypothesis import strategies as st

from slowconv.data import (
    fashion_classes,
    fashion_mnist,
    fashion_sample,
    load_images,
    mnist,
)
from slowconv.sources import find_source, identify, known_sets, read_idx, verify

sample_file = files("slowconv") / "sample" / "fashion_mnist.parquet"
system_folder = Path("/usr/share/datasets/fashion-mnist")
needs_system = pytest.mark.skipif(
    not (system_folder / "train-images-idx3-ubyte.gz").is_file(),
    reason="Debian's package dataset-fashion-mnist is not installed",
)


# read_idx


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("idx") / "file"


shapes = st.lists(st.integers(0, 6), min_size=1, max_size=3)


@given(shape=shapes, zipped=st.booleans(), seed=st.integers(0, 99))
def test_read_idx_gives_back_what_was_written(scratch, shape, zipped, seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
    scratch.write_bytes(gzip.compress(idx_bytes(a)) if zipped else idx_bytes(a))
    got = read_idx(scratch)
    assert got.dtype == torch.uint8 and got.shape == a.shape and torch.equal(got, a)
    got.zero_()  # ours to change, without a warning


junk = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda b: b"\x1f\x8b" + b),
    st.binary(max_size=60).map(lambda b: b"\x1f\x8b\x08" + b),
    st.binary(max_size=60).map(gzip.compress),
    st.binary(max_size=20).map(lambda b: b"\0\0\x08" + b),
    st.binary(max_size=20).map(lambda b: gzip.compress(b"\0\0\x08\x03" + b)),
)


@given(junk)
def test_read_idx_of_any_bytes_is_a_tensor_or_a_value_error(scratch, raw):
    scratch.write_bytes(raw)
    try:
        a = read_idx(scratch)
    except ValueError as e:
        assert str(scratch) in str(e)
    else:
        body = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        assert idx_bytes(a) == body


@given(data=st.data(), zipped=st.booleans())
def test_a_truncated_file(scratch, data, zipped):
    raw = idx_bytes(digits(2, 0)[0])
    raw = gzip.compress(raw) if zipped else raw
    scratch.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(ValueError, match=re.escape(str(scratch))):
        read_idx(scratch)


def test_a_truncated_file_says_how_much_is_there(scratch):
    raw = idx_bytes(digits(2, 0)[0])
    scratch.write_bytes(raw[:-68])
    with pytest.raises(ValueError, match="1,568 .*1,500"):
        read_idx(scratch)
    scratch.write_bytes(raw + b"more")
    with pytest.raises(ValueError, match="1,568 .*1,572"):
        read_idx(scratch)


@pytest.mark.parametrize("magic", ["00000d03", "00000800", "00000804", "89504e47", "ffffffff"])
def test_a_wrong_magic_number(scratch, magic):
    scratch.write_bytes(bytes.fromhex(magic) + struct.pack(">3I", 1, 2, 2) + b"1234")
    with pytest.raises(ValueError, match=f"magic.*{magic}"):
        read_idx(scratch)


def test_a_broken_gzip_file(scratch):
    raw = bytearray(gzip.compress(idx_bytes(digits(2, 0)[0])))
    raw[200] ^= 255
    scratch.write_bytes(raw)
    with pytest.raises(ValueError, match="gzip"):
        read_idx(scratch)


# identify and verify


def test_identify_knows_by_the_hash(patch_known):
    images, labels = digits(20, 20)
    assert identify(images) == (None, None)
    patch_known("mnist", sha256=digests())
    assert identify(images) == ("mnist", "training images")
    assert identify(labels) == ("mnist", "training labels")
    assert identify(images.flip(0)) == (None, None)


@needs_system
@pytest.mark.parametrize("stem, part", [("train", "training"), ("t10k", "test")])
def test_identify_knows_the_real_fashion_mnist(stem, part):
    for kind, idx in (("images", "idx3"), ("labels", "idx1")):
        a = read_idx(system_folder / f"{stem}-{kind}-{idx}-ubyte.gz")
        assert identify(a) == ("fashion_mnist", f"{part} {kind}")


def test_hashes_are_those_that_were_published():
    "From the data sets' own files, decompressed."
    fashion, digit = (list(known_sets[name].sha256) for name in ("fashion_mnist", "mnist"))
    assert [h[:8] for h in fashion] == ["c59f468a", "bad3541b", "5b4141f0", "0402a96d"]
    assert [h[:8] for h in digit[2:]] == ["0fa7898d", "ff7bcfd4"]
    assert len({*fashion, *digit}) == 8 and all(len(h) == 64 for h in fashion + digit)


def test_digits_under_the_name_of_fashion(tmp_path, patch_known):
    "Same file names, same shapes: only the hash tells."
    patch_known("mnist", sha256=digests())
    folder = make_folder(tmp_path / "fashion-mnist")
    with pytest.raises(
        ValueError, match="Fashion-MNIST's training images come MNIST's training images"
    ):
        load_images("fashion_mnist", "train", folder)
    assert len(load_images("mnist", "train", folder)[0]) == 20


def test_fashion_under_the_name_of_digits(tmp_path, patch_known):
    patch_known("fashion_mnist", sha256=digests())
    folder = make_folder(tmp_path / "mnist")
    with pytest.raises(ValueError, match="MNIST's test images come Fashion-MNIST's test images"):
        load_images("mnist", "test", folder)


def test_train_and_test_exchanged(tmp_path, patch_known):
    patch_known("fashion_mnist", sha256=digests())
    folder = make_folder(
        tmp_path, n_train=10, n_test=20
    )  # the test files of `digests` as training files
    with pytest.raises(ValueError, match="training images come .*test images"):
        load_images("fashion_mnist", "train", folder)


def test_the_real_digits_under_the_name_of_fashion():
    folder = os.environ.get("SLOWCONV_TEST_MNIST")
    if not folder:
        pytest.skip("$SLOWCONV_TEST_MNIST names no folder with MNIST's test files")
    with pytest.raises(ValueError, match="Fashion-MNIST's test images come MNIST's test images"):
        load_images("fashion_mnist", "test", folder)
    images, labels = load_images("mnist", "test", folder)
    assert len(images) == len(labels) == 10_000


@pytest.mark.parametrize(
    "source, fine", [("/some/folder", True), ("system", False), ("hub", False)]
)
def test_only_a_folder_of_ones_own_may_hold_other_images(source, fine):
    images, labels = digits(20, 1)
    if fine:
        verify("fashion_mnist", "train", source, images, labels)
    else:
        with pytest.raises(ValueError, match=f"{source}.*training images.*sha256"):
            verify("fashion_mnist", "train", source, images, labels)


# a folder


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("dot", [False, True])
def test_a_folder_of_idx_files(tmp_path, gz, dot, capsys):
    folder = make_folder(tmp_path / "a", gz=gz)
    if dot:
        for path in list(folder.iterdir()):
            path.rename(str(path).replace("-idx", ".idx"))
    with fashion_mnist(source=folder) as dls:
        xb, yb = next(iter(dls.valid))
    images, labels = digits(10, 10)
    torch.testing.assert_close(xb[:, 0], images / 255)
    assert torch.equal(yb, labels.long())
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and str(folder) in out
    assert re.findall(r"\d+", out.replace(str(folder), "")) == ["20", "10"]


def test_a_folder_that_save_to_disk_wrote(tmp_path, dsd, sample):
    dsd.save_to_disk(tmp_path / "saved")
    for split, n in (("train", 70), ("test", 45)):
        images, labels = load_images("fashion_mnist", split, tmp_path / "saved")
        assert torch.equal(images, sample[split][0][:n])
        assert torch.equal(labels, sample[split][1][:n])


def test_a_saved_folder_with_a_split_called_validation(tmp_path, dsd):
    datasets.DatasetDict(train=dsd["train"], validation=dsd["test"]).save_to_disk(tmp_path / "a")
    with fashion_mnist(source=tmp_path / "a") as dls:
        assert (len(dls.train.dataset), len(dls.valid.dataset)) == (70, 45)


def test_a_folder_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make_folder(tmp_path / "fashion")
    assert len(load_images("fashion_mnist", "train", "~/fashion")[0]) == 20


@pytest.mark.parametrize("open_", [fashion_mnist, mnist])
def test_no_such_folder(open_):
    with pytest.raises(FileNotFoundError, match="'/no/where'"):
        with open_(source="/no/where"):
            pytest.fail("it was opened")


def test_a_folder_without_the_files(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*train-images.*holiday.jpg"):
        find_source("fashion_mnist", tmp_path)


@pytest.mark.parametrize("missing", ["train-images", "train-labels", "t10k-images", "t10k-labels"])
def test_a_folder_without_one_of_the_files(tmp_path, missing):
    folder = make_folder(tmp_path)
    next(folder.glob(f"{missing}*")).unlink()
    kind = missing.split("-")[1]
    with pytest.raises(
        FileNotFoundError, match=f"{tmp_path}.*{kind}.*{'train' if 'tr' in missing else 'test'}"
    ):
        with fashion_mnist(source=folder):
            pytest.fail("it was opened")


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("stem", ["train-images-idx3", "t10k-labels-idx1"])
def test_a_folder_with_a_truncated_file(tmp_path, stem, gz):
    path = make_folder(tmp_path, gz=gz) / f"{stem}-ubyte{gz}"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        with fashion_mnist(source=tmp_path):
            pytest.fail("it was opened")


def test_a_folder_with_a_wrong_magic_number(tmp_path):
    path = make_folder(tmp_path, gz="") / "train-images-idx3-ubyte"
    path.write_bytes(b"\0\0\x0d\x03" + path.read_bytes()[4:])
    with pytest.raises(ValueError, match="magic.*00000d03"):
        load_images("fashion_mnist", "train", tmp_path)


def broken(tmp_path, images=None, labels=None):
    "A folder whose training split is these."
    folder = make_folder(tmp_path)
    good_images, good_labels = digits(20, 0)
    images = good_images if images is None else images
    labels = good_labels if labels is None else labels
    write_idx(folder / "train-images-idx3-ubyte.gz", images)
    write_idx(folder / "train-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.mark.parametrize("n", [0, 1, 19, 21])
def test_images_and_labels_of_unlike_length(tmp_path, n):
    folder = broken(tmp_path, labels=torch.zeros(n, dtype=torch.uint8))
    with pytest.raises(ValueError, match=rf"20 images .*\[{n}\]"):
        load_images("fashion_mnist", "train", folder)


@pytest.mark.parametrize("label", [10, 255])
def test_labels_out_of_range(tmp_path, label):
    labels = digits(20, 0)[1]
    labels[7] = label
    with pytest.raises(ValueError, match=f"labels from 0 to {label}"):
        load_images("fashion_mnist", "train", broken(tmp_path, labels=labels))


@pytest.mark.parametrize("shape", [(20, 32, 32), (20, 784), (20,), (20, 28, 27)])
def test_images_of_another_size(tmp_path, shape):
    folder = broken(tmp_path, torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match=re.escape(str(list(shape)))):
        load_images("fashion_mnist", "train", folder)


def test_no_images_at_all(tmp_path):
    none = torch.zeros((0, 28, 28), dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8)
    with pytest.raises(ValueError, match="0 images"):
        load_images("fashion_mnist", "train", broken(tmp_path, *none))


bad_saved = {
    "another name for image": lambda d: d.rename_column("image", "img"),
    "another name for label": lambda d: d.rename_column("label", "digit"),
    "texts for labels": lambda d: d.cast_column("label", datasets.Value("string")),
    "no train": lambda d: datasets.DatasetDict(tran=d["train"], test=d["test"]),
}


@pytest.mark.parametrize("case", bad_saved)
def test_a_saved_folder_that_will_not_do(tmp_path, dsd, case):
    "Each is a ValueError, which the command turns into a line; no KeyError or AttributeError from within."
    bad_saved[case](dsd).save_to_disk(tmp_path / "a")
    with pytest.raises(ValueError):
        load_images("fashion_mnist", "train", tmp_path / "a")


@pytest.mark.parametrize("text", ["", "no json", "{}", '{"splits": ["train", "test"]}'])
def test_a_saved_folder_that_is_broken(tmp_path, text):
    (tmp_path / "dataset_dict.json").write_text(text)
    with pytest.raises((ValueError, OSError)):
        load_images("fashion_mnist", "train", tmp_path)


@pytest.mark.parametrize("name", ["fashion", "cifar10", ""])
def test_an_unknown_set(name):
    with pytest.raises(ValueError, match=f"'{name}'.*fashion_mnist.*mnist"):
        find_source(name)


@pytest.mark.parametrize("source", ["", "x" * 5000, "a\0b"])
def test_a_source_that_is_no_folder(source):
    with pytest.raises(FileNotFoundError, match="no such folder") as e:
        find_source("fashion_mnist", source)
    assert len(str(e.value)) < 400


def test_training_images_in_the_place_of_test_images(tmp_path, patch_known):
    patch_known("fashion_mnist", sha256=digests())
    folder = make_folder(tmp_path)
    wrong = folder / "t10k-images-idx3-ubyte.gz"
    wrong.write_bytes((folder / "train-images-idx3-ubyte.gz").read_bytes())
    with pytest.raises(ValueError, match=f"test images come .*training images .{wrong}"):
        load_images("fashion_mnist", "test", folder)


def test_a_saved_set_with_labels_that_are_no_whole_numbers(dsd, tmp_path):
    dsd = dsd.cast_column("label", datasets.Value("float32"))
    dsd = dsd.map(lambda e: {"label": e["label"] + 0.5})
    dsd.save_to_disk(tmp_path / "a")
    with pytest.raises(ValueError, match="whole numbers from 0 to 9"):
        load_images("fashion_mnist", "train", tmp_path / "a")


# the order


def hub_parquet(folder, n_train=20, n_test=10, seed=0):
    "The hub's two files with made-up images, in its format."
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(fashion_classes))
    )
    for split, n in (("train", n_train), ("test", n_test)):
        images, labels = digits(n, seed + n)
        rows = {"image": list(images.numpy()), "label": labels.tolist()}
        ds = datasets.Dataset.from_dict(rows, features=features)
        ds.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def fill_cache(monkeypatch, folder):
    "As if the hub's cache held the files of this folder."
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, file, *args, **kwargs: str(folder / Path(file).name),
    )


def test_the_order(tmp_path, monkeypatch, offline, patch_known):
    "source, $SLOWCONV_DATA, the system's package, the hub, the sample: take each away in turn."
    a, b, c = (make_folder(tmp_path / name, seed=i) for i, name in enumerate("abc", 1))
    both = digests(seed=3) | digests(seed=4)
    patch_known("fashion_mnist", system=str(c), sha256=both)
    download = huggingface_hub.try_to_load_from_cache
    fill_cache(monkeypatch, hub_parquet(tmp_path / "hub", seed=4))
    monkeypatch.setenv("SLOWCONV_DATA", str(b))

    def pixels(source=None):
        return load_images("fashion_mnist", "train", source)[0]

    def made(seed):
        return digits(20, seed + 20)[0]

    assert find_source("fashion_mnist", a) == str(a) and torch.equal(pixels(a), made(1))
    assert find_source("fashion_mnist") == str(b) and torch.equal(pixels(), made(2))
    monkeypatch.delenv("SLOWCONV_DATA")
    assert find_source("fashion_mnist") == "system" and torch.equal(pixels(), made(3))
    patch_known("fashion_mnist", system=str(tmp_path / "nowhere"))
    assert find_source("fashion_mnist") == "hub" and torch.equal(pixels(), made(4))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", download)
    with pytest.warns(UserWarning, match="sample"):
        assert find_source("fashion_mnist") == "sample"
    with pytest.warns(UserWarning, match="sample"):
        assert len(pixels()) == 5000


@pytest.mark.parametrize("word", ["system", "hub", "sample"])
@pytest.mark.parametrize("by", ["source", "environment"])
def test_the_words(tmp_path, monkeypatch, offline, patch_known, word, by):
    "Each takes what it says, whatever else there is."
    patch_known("fashion_mnist", system=str(make_folder(tmp_path / "system")))
    fill_cache(monkeypatch, tmp_path)
    if by == "environment":
        monkeypatch.setenv("SLOWCONV_DATA", word)
    assert find_source("fashion_mnist", word if by == "source" else None) == word


@pytest.mark.parametrize("word, part", [("system", "installed"), ("hub", "the cable is out")])
def test_a_word_for_what_is_not_there(offline, word, part):
    with pytest.raises(FileNotFoundError, match=f"'{word}'.*{part}.*apt-get"):
        find_source("fashion_mnist", word)


def test_a_source_that_is_not_there_is_not_passed_over(tmp_path, monkeypatch, patch_known):
    patch_known("fashion_mnist", system=str(make_folder(tmp_path)))
    monkeypatch.setenv("SLOWCONV_DATA", "/no/where")
    with pytest.raises(FileNotFoundError, match=r"SLOWCONV_DATA.*'/no/where'"):
        find_source("fashion_mnist")
    monkeypatch.setenv("SLOWCONV_DATA", "")
    assert find_source("fashion_mnist") == "system"


@pytest.fixture
def two_systems(tmp_path, patch_known):
    "Both sets as packages of the system, so that nothing asks the network."
    for name in ("fashion_mnist", "mnist"):
        patch_known(name, system=str(make_folder(tmp_path / "packages" / name)))


def test_environment_with_a_folder_per_set(tmp_path, monkeypatch, two_systems):
    for name in ("fashion-mnist", "mnist"):
        make_folder(tmp_path / "data" / name)
    monkeypatch.setenv("SLOWCONV_DATA", str(tmp_path / "data"))
    assert find_source("fashion_mnist") == str(tmp_path / "data" / "fashion-mnist")
    assert find_source("mnist") == str(tmp_path / "data" / "mnist")


@pytest.mark.parametrize(
    "folder, has, lacks",
    [("mnist", "mnist", "fashion_mnist"), ("fashion-mnist", "fashion_mnist", "mnist")],
)
def test_environment_with_a_folder_of_the_other_set_alone(
    tmp_path, monkeypatch, two_systems, folder, has, lacks
):
    make_folder(tmp_path / "data" / folder)
    monkeypatch.setenv("SLOWCONV_DATA", str(tmp_path / "data"))
    assert find_source(has) == str(tmp_path / "data" / folder)
    assert find_source(lacks) == "system"


def test_environment_with_the_files_of_one_set(tmp_path, monkeypatch, two_systems, patch_known):
    "One folder, no subfolders: the hash tells for which of the two it speaks."
    patch_known("mnist", sha256=digests(seed=7))
    monkeypatch.setenv("SLOWCONV_DATA", str(make_folder(tmp_path / "data", seed=7)))
    assert find_source("mnist") == str(tmp_path / "data")
    assert find_source("fashion_mnist") == "system"


# falling back


def test_the_fallback_warns(offline):
    with pytest.warns(UserWarning) as caught:
        with fashion_mnist() as dls:
            assert len(dls.train.dataset) == 5000
    assert len(caught) == 1
    text = str(caught[0].message)
    for part in (
        "Hugging Face hub",
        "the cable is out",
        "sample",
        "5,000",
        "lower",
        "apt-get install",
    ):
        assert part in text


@pytest.mark.parametrize(
    "error", [ConnectionError(), TimeoutError(""), OSError("one\ntwo"), ValueError("\n")]
)
def test_the_fallback_whatever_the_error_says(offline, monkeypatch, error):
    "Errors of the network have no text at times."

    def unplugged(*args, **kwargs):
        raise error

    monkeypatch.setattr(requests, "get", unplugged)
    with pytest.warns(UserWarning, match=type(error).__name__):
        assert find_source("fashion_mnist") == "sample"


def test_naming_the_sample_does_not_warn(recwarn):
    with fashion_mnist(source="sample"):
        pass
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_digits_have_no_sample(offline):
    with pytest.raises(FileNotFoundError, match="MNIST.*the cable is out"):
        with mnist():
            pytest.fail("it was opened")
    with pytest.raises(FileNotFoundError, match="'sample'.*no sample of MNIST"):
        find_source("mnist", "sample")


def test_a_copy_in_the_cache_that_was_changed(tmp_path, monkeypatch, offline):
    "What comes from the hub is what it says, or an error."
    fill_cache(monkeypatch, hub_parquet(tmp_path / "hub"))
    assert find_source("fashion_mnist") == "hub"
    with pytest.raises(ValueError, match="'hub'.*training images.*sha256"):
        with fashion_mnist():
            pytest.fail("it was opened")


def test_a_system_package_that_was_changed(tmp_path, patch_known):
    patch_known("fashion_mnist", system=str(make_folder(tmp_path)))
    with pytest.raises(ValueError, match="'system'.*training images.*sha256"):
        with fashion_mnist():
            pytest.fail("it was opened")


# the sample


def test_the_sample_is_balanced(sample):
    for split, n in (("train", 500), ("test", 100)):
        images, labels = sample[split]
        assert (images.shape, images.dtype) == ((10 * n, 28, 28), torch.uint8)
        assert labels.bincount().tolist() == [n] * 10


def test_no_image_is_in_both_splits_of_the_sample(sample):
    train, test = ({im.tobytes() for im in sample[split][0].numpy()} for split in ("train", "test"))
    assert not train & test


def test_the_sample_has_the_columns_of_the_hub():
    schema = pq.read_schema(sample_file)
    assert schema.names == ["image", "label"]
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"]["_type"] == "Image"
    assert features["label"] == {"_type": "ClassLabel", "names": list(fashion_classes)}
    for ds in fashion_sample().values():
        assert list(ds.features) == ["image", "label"]
        assert (ds[0]["image"].mode, ds[0]["image"].size, ds[0]["image"].format) == (
            "L",
            (28, 28),
            "PNG",
        )


def test_the_sample_is_small_and_has_its_licence():
    assert Path(sample_file).stat().st_size < 5e6
    licence = (files("slowconv") / "sample" / "LICENSE").read_text()
    assert "MIT" in licence and "Zalando" in licence and "Permission is hereby granted" in licence


def test_the_package_stays_under_five_megabytes():
    folder = Path(str(files("slowconv")))
    sizes = [
        p.stat().st_size for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    ]
    assert sum(sizes) < 5e6


@needs_system
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_sample_is_part_of_the_full_set(sample, split):
    def rows(images, labels):
        return {(im.tobytes(), n) for im, n in zip(images.numpy(), labels.tolist(), strict=True)}

    full = load_images("fashion_mnist", split, "system")
    assert rows(*sample[split]) <= rows(*full)


@needs_system
def test_the_system_package_is_the_full_set(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fashion_mnist() as dls:
            assert (len(dls.train.dataset), len(dls.valid.dataset)) == (60_000, 10_000)
    out = capsys.readouterr().out
    assert "60,000" in out and "10,000" in out and str(system_folder) in out


# the hub, played by a server on this machine; huggingface_hub reads its settings when it is imported,
# so each of these asks from a process of its own


class Hub(http.server.BaseHTTPRequestHandler):
    "Answers as the hub does for the files of `server.folder`, or with `server.status`."

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        self.server.asked.append(f"{self.command} {self.path}")
        repo = known_sets["fashion_mnist"].hub[0]
        found = re.fullmatch(rf"/datasets/{repo}/resolve/[^/]+/fashion_mnist/([^/?]+)", self.path)
        path = self.server.folder / found[1] if found else None
        if self.server.status or path is None or not path.is_file():
            self.send_response(self.server.status or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        raw = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{path.name}"')
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if body:
            self.wfile.write(raw)

    def log_message(self, *args):
        pass


@contextmanager
def hub(folder, status=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.folder, server.status, server.asked = folder, status, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


ask = """
import json, sys, warnings
from types import SimpleNamespace
from slowconv import sources
from slowconv.data import load_images

known = sources.known_sets["fashion_mnist"]
known.system = None
out = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    out["source"] = sources.find_source("fashion_mnist")
out["warned"] = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
if out["source"] == "hub":
    try:
        load_images("fashion_mnist", "train", "hub")
    except ValueError as e:
        out["error"] = str(e)
    known.sha256.update(json.loads(sys.argv[1]))
    out["numbers"] = [len(load_images("fashion_mnist", s, "hub")[0]) for s in ("train", "test")]
print(json.dumps(out))
"""


def ask_hub(port, home, known=None):
    "Where a process takes Fashion-MNIST from when the hub is at that port of this machine."
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()
    }
    env |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", ask, json.dumps(known or {})],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory):
    "The sample under the names of the hub's files."
    folder = tmp_path_factory.mktemp("hub")
    whole = pq.ParquetFile(io.BytesIO(sample_file.read_bytes()))
    for i, split in enumerate(("train", "test")):
        pq.write_table(whole.read_row_group(i), folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_the_hub_is_asked_once_and_then_its_cache(hub_folder, tmp_path, sample):
    parts = [("training", *sample["train"]), ("test", *sample["test"])]
    known = {}
    for part, images, labels in parts:
        known |= {
            sha256(images): f"{part} images",
            sha256(labels.to(torch.uint8)): f"{part} labels",
        }
    with hub(hub_folder) as server:
        port = server.server_address[1]
        first = ask_hub(port, tmp_path / "home", known)
        fetched = [
            a.rsplit("/", 1)[1]
            for a in server.asked
            if a.startswith("GET") and a.endswith(".parquet")
        ]
    assert first["source"] == "hub" and first["warned"] == []
    assert "training images" in first["error"] and "sha256" in first["error"]
    assert first["numbers"] == [5000, 1000]
    assert sorted(fetched) == ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]
    again = ask_hub(port, tmp_path / "home", known)  # the server is gone
    assert again == first
