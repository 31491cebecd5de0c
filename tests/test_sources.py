"Where Fashion-MNIST and MNIST come from: folders, the system, the hub and its failures, the sample."

import gzip
import hashlib
import http.server
import os
import shutil
import socket
import threading
import time
import warnings
from contextlib import contextmanager

import datasets
import pytest
import torch
from conftest import idx_bytes, make_folder, write_idx

from slowconv import data
from slowconv.data import fashion_mnist, fashion_sample, find_source, load_images, mnist, read_idx

images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_read_idx(tmp_path, name):
    write_idx(tmp_path / name, images)
    assert torch.equal(read_idx(tmp_path / name), images)


raw = idx_bytes(images)
broken = {
    "nothing": b"",
    "text": b"<html>nothing here</html>",
    "floats": b"\0\0\x0d" + raw[3:],
    "cut short": raw[:-1],
    "too long": raw + b"x",
    "a header alone": raw[:7],
    "a broken gzip": gzip.compress(raw)[:-9],
    "a gzip of text": gzip.compress(b"text"),
    "promises too much": b"\0\0\x08\x03" + b"\xff" * 12,
}


@pytest.mark.parametrize("case", broken)
def test_a_file_that_is_no_idx_file_of_bytes(tmp_path, case):
    (tmp_path / "a").write_bytes(broken[case])
    with pytest.raises(ValueError, match=f"{tmp_path / 'a'}.*cut short"):
        read_idx(tmp_path / "a")


# Folders


@pytest.fixture
def publish(monkeypatch):
    "publish(tensor, name): from now on these are the published numbers of that name."

    def publish(a, name):
        digest = hashlib.sha256(idx_bytes(a.to(torch.uint8))).hexdigest()
        monkeypatch.setitem(data.published, digest, name)

    return publish


def idx_files(folder):
    "(split, kind, numbers) of each IDX file in a folder that `make_folder` made."
    for split, stem in (("train", "train"), ("test", "t10k")):
        for kind, idx in (("images", 3), ("labels", 1)):
            yield split, kind, read_idx(next(folder.glob(f"{stem}-{kind}-idx{idx}-ubyte*")))


def test_a_folder_of_ones_own_is_said_to_be_unpublished(tmp_path):
    with pytest.warns(UserWarning, match="not the published Fashion-MNIST"):
        dls = fashion_mnist(source=make_folder(tmp_path))
    assert [len(dl.dataset) for dl in dls] == [20, 10]


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_a_published_folder_needs_no_warning(tmp_path, publish, gz):
    for split, kind, a in idx_files(make_folder(tmp_path, gz=gz)):
        publish(a, f"MNIST {split} {kind}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = mnist(source=str(tmp_path)).valid.dataset.columns["image"]
    assert torch.equal(got, read_idx(tmp_path / f"t10k-images-idx3-ubyte{gz}"))


def test_one_set_under_the_name_of_another(tmp_path, publish):
    for split, kind, a in idx_files(make_folder(tmp_path)):
        publish(a, f"MNIST {split} {kind}")
    with pytest.raises(
        ValueError, match="found MNIST train images in place of Fashion-MNIST train"
    ):
        fashion_mnist(source=tmp_path)


def test_the_test_images_under_the_name_of_the_training_images(tmp_path, publish):
    folder = make_folder(tmp_path, gz="")
    for split, kind, a in idx_files(folder):
        publish(a, f"Fashion-MNIST {split} {kind}")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        shutil.copy(folder / f"t10k-{kind}", folder / f"train-{kind}")
    with pytest.raises(ValueError, match="found Fashion-MNIST test images in place of"):
        load_images("fashion_mnist", "train", folder)


def test_images_and_labels_of_unlike_number(tmp_path):
    folder = make_folder(tmp_path, gz="")
    write_idx(folder / "t10k-labels-idx1-ubyte", torch.zeros(9, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"10, 28, 28\) and \(torch.uint8, 9\)"):
        load_images("fashion_mnist", "test", folder)


def test_a_folder_that_lacks_a_file(tmp_path):
    folder = make_folder(tmp_path)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no file train-labels.*Go online once"):
        fashion_mnist(source=folder)


def test_a_saved_dataset_dict(tmp_path):
    few = {k: ds.select(range(20)) for k, ds in fashion_sample().items()}
    datasets.DatasetDict(few).save_to_disk(tmp_path / "set")
    with pytest.warns(UserWarning, match="not the published"):
        images, labels = load_images("fashion_mnist", "test", tmp_path / "set")
    want, _ = load_images("fashion_mnist", "test", "sample")
    assert torch.equal(images, want[:20]) and labels.tolist() == few["test"]["label"][:20]


@pytest.mark.parametrize("source", ["/nowhere", "~nosuchuser/x", "system", "sample"])
def test_a_source_that_is_not_there(source):
    with pytest.raises(FileNotFoundError, match="MNIST: no folder .*Go online once"):
        mnist(source=source)


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="no data set 'cifar'"):
        find_source("cifar")


def test_what_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOWCONV_DATA", str(tmp_path))
    make_folder(tmp_path / "mnist")
    assert find_source("mnist") == str(tmp_path / "mnist")
    assert find_source("mnist", "hub") == "hub"
    monkeypatch.setenv("SLOWCONV_DATA", "sample")
    assert find_source("fashion_mnist") == "sample"
    monkeypatch.setenv("SLOWCONV_DATA", str(tmp_path / "typo"))
    with pytest.raises(FileNotFoundError, match="typo"):
        find_source("mnist")


# The hub, played by a server on this machine


class Hub(http.server.BaseHTTPRequestHandler):
    "`server.how` says how it fails, `server.files` what it has."

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        how, body = self.server.how, self.server.files.get(self.path.split("/")[-1], b"")
        self.server.asked.append(self.path)
        if how == "silent":
            self.server.over.wait(30)
            return None
        if how.isdigit():
            self.send_response(int(how))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        return body[start:]

    def do_GET(self):
        body = self.do_HEAD()
        if body:
            half = self.server.how == "half" and len(body) > 1000
            self.wfile.write(body[: len(body) // 2] if half else body)
            self.close_connection = True

    def log_message(self, *args):
        pass


@contextmanager
def serve(how, files=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.how, server.files, server.asked = how, files or {}, []
    server.over = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "hub(server): from now on the Hugging Face hub is there, its cache is empty, and no other source exists."
    from huggingface_hub import constants

    def point_to(port):
        address = f"http://127.0.0.1:{port}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name, known in data.known_sets.items():
            monkeypatch.setitem(data.known_sets, name, known._replace(system=""))

    return point_to


def parquet_files(folder, split_sizes=(("train", 30), ("test", 20))):
    "What the hub has: a Parquet file for each split."
    files = {}
    for split, n in split_sizes:
        path = folder / f"{split}.parquet"
        fashion_sample()[split].select(range(n)).to_parquet(path)
        files[f"{split}-00000-of-00001.parquet"] = path.read_bytes()
    return files


@pytest.mark.parametrize("how", ["401", "403", "404", "429", "500", "503", "silent"])
def test_a_hub_that_fails_is_decided_within_ten_seconds(hub, how):
    with serve(how) as server:
        hub(server.server_address[1])
        start = time.perf_counter()
        with pytest.warns(
            UserWarning, match="using the sample .* the Hugging Face hub did not send"
        ):
            assert find_source("fashion_mnist") == "sample"
        assert time.perf_counter() - start < 10
        assert len(server.asked) == 1, "one short question, and no more"
        with pytest.raises(FileNotFoundError, match="MNIST is not on this machine.*Go online once"):
            find_source("mnist")


def test_a_hub_whose_name_or_addresses_never_answer(hub, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: threading.Event().wait())
    hub(1)
    with pytest.warns(UserWarning, match="using the sample .*TimeoutError"):
        assert find_source("fashion_mnist") == "sample"


@pytest.mark.parametrize("how", ["nobody there", "a proxy that refuses"])
def test_no_network(hub, monkeypatch, how):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    hub(port)
    if how != "nobody there":
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
    start = time.perf_counter()
    with pytest.warns(UserWarning, match="Connection refused"):
        assert find_source("fashion_mnist") == "sample"
    assert time.perf_counter() - start < 10
    with pytest.raises(ConnectionError, match="the Hugging Face hub did not send it"):
        load_images("mnist", "test", "hub")


def test_offline_mode_asks_nobody(hub, monkeypatch):
    with serve("well") as server:
        hub(server.server_address[1])
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.warns(UserWarning, match="cannot find the requested files in the local cache"):
            assert find_source("fashion_mnist") == "sample"
        assert server.asked == []


def test_half_a_file(hub, tmp_path):
    "The library tries to go on where it broke off, for some seconds."
    with serve("half", parquet_files(tmp_path)) as server:
        hub(server.server_address[1])
        start = time.perf_counter()
        with pytest.warns(UserWarning, match="without sending complete message"):
            assert find_source("fashion_mnist") == "sample"
        assert time.perf_counter() - start < 10


def test_a_set_from_the_hub(hub, tmp_path, publish):
    "Downloaded, decoded and kept: the second time nobody is asked."
    want = {split: load_images("fashion_mnist", split, "sample") for split in ("train", "test")}
    for split, n in (("train", 30), ("test", 20)):
        for kind, a in zip(("images", "labels"), want[split], strict=True):
            publish(a[:n], f"Fashion-MNIST {split} {kind}")
    with serve("well", parquet_files(tmp_path)) as server:
        hub(server.server_address[1])
        dls = fashion_mnist()
        n_asked = len(server.asked)
        again = fashion_mnist()
        assert len(server.asked) == n_asked
    for d in (dls, again):
        assert torch.equal(d.train.dataset.columns["image"], want["train"][0][:30])
        assert torch.equal(d.valid.dataset.columns["label"], want["test"][1][:20])
    # a copy that was cut short, or changed, is decoded anew
    kept = tmp_path / "cache" / "fashion_mnist-test.safetensors"
    for damage in (lambda b: b[:1000], lambda b: b[:-1] + bytes([b[-1] ^ 1])):
        kept.write_bytes(damage(kept.read_bytes()))
        assert torch.equal(load_images("fashion_mnist", "test", "hub")[0], want["test"][0][:20])


def test_a_hub_that_sends_something_else(hub, tmp_path):
    with serve("well", parquet_files(tmp_path)) as server:
        hub(server.server_address[1])
        with pytest.raises(ValueError, match="parquet: not the published images; remove it"):
            load_images("fashion_mnist", "test", "hub")
    assert not (tmp_path / "cache").exists(), "what is wrong is not kept"


def test_a_copy_that_cannot_be_kept(hub, tmp_path, publish, monkeypatch):
    for kind, a in zip(
        ("images", "labels"), load_images("fashion_mnist", "test", "sample"), strict=True
    ):
        publish(a[:20], f"Fashion-MNIST test {kind}")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SLOWCONV_CACHE", str(tmp_path / "file" / "below"))
    with serve("well", parquet_files(tmp_path)) as server:
        hub(server.server_address[1])
        with pytest.warns(UserWarning, match="not kept"):
            images, _ = load_images("fashion_mnist", "test", "hub")
    assert len(images) == 20


# The real ones, where this machine has them


def test_the_sample_is_part_of_fashion_mnist(sample):
    folder = "/usr/share/datasets/fashion-mnist"
    if not os.path.isdir(folder):
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    for split, (images, labels) in sample.items():
        all_images, all_labels = load_images("fashion_mnist", split, "system")
        rows = {a.tobytes(): int(y) for a, y in zip(all_images.numpy(), all_labels, strict=True)}
        assert all(rows[a.tobytes()] == y for a, y in zip(images.numpy(), labels, strict=True))
        assert labels.bincount().tolist() == [len(labels) // 10] * 10


def test_mnist_itself():
    folder = os.environ.get("SLOWCONV_TEST_MNIST")
    if not folder:
        pytest.skip("$SLOWCONV_TEST_MNIST names no folder with MNIST's test split")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, labels = load_images("mnist", "test", folder)
    assert len(images) == len(labels) == 10_000
    with pytest.raises(ValueError, match="found MNIST test images in place of Fashion-MNIST"):
        load_images("fashion_mnist", "test", folder)
