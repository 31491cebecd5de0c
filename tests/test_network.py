"A hub that fails in every way we know, and files made to do harm."

import errno
import hashlib
import http.server
import inspect
import os
import re
import socket
import threading
import time
from contextlib import contextmanager

import huggingface_hub
import pytest
from conftest import digits

from slowconv import cache, sources
from slowconv.cache import cache_folder, list_entries
from slowconv.sources import known_sets, read_idx, verify

body = (
    b"PAR1" + bytes(range(256)) * 4000 + b"PAR1"
)  # 1 MB that begin and end as a parquet file does


class Hub(http.server.BaseHTTPRequestHandler):
    "`server.way` says what becomes of the file."

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        way = self.server.way
        if way == "no answer":
            self.server.over.wait(30)
            return
        self.send_response(int(way) if way.isdigit() else 200)
        length = {"404": 0, "500": 0, "nothing": 0, "endless": 10**15}.get(way, len(body))
        if way != "no length":
            self.send_header("Content-Length", str(length))
        if way == "zipped":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if way in ("206", "zipped", "endless", "a page", "no end"):
            starts = {"a page": b"<html>", "no end": b"PAR1"}
            self.send(starts.get(way, b"").ljust(len(body), b"x") if way in starts else body)
            return
        if length == 0:
            return
        if way == "drip":
            while not self.server.over.wait(0.2):
                self.send(b"PAR1")
            return
        if way == "silent file":
            self.server.over.wait(30)
            return
        if way == "slow":
            for i in range(0, len(body), 100_000):
                self.send(body[i : i + 100_000])
                time.sleep(0.25)
            return
        self.send(body[: len(body) // 2])
        if way == "half, then silence":
            self.server.over.wait(30)
        self.close_connection = True

    def send(self, data):
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            pass

    def log_message(self, *args):
        pass


@contextmanager
def hub(way):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.way, server.over = way, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def fetch(monkeypatch):
    "fetch(port): why the set could not be had from there, with less patience than readers have."
    monkeypatch.setattr(sources, "_cached_by_hub", lambda known: None)

    def run(port):
        def address(known, split):
            url = f"http://127.0.0.1:{port}/{split}.parquet"
            return url, hashlib.sha256(url.encode()).hexdigest()

        monkeypatch.setattr(sources, "_address", address)
        return sources._fetch(known_sets["fashion_mnist"], seconds=2, patience=2)

    return run


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


reasons = {
    "no answer": "nothing came within 2 seconds|timed out",
    "404": "404",
    "500": "500",
    "206": "not a whole file: status 206",
    "nothing": "not a whole file",
    "no length": "not a whole file",
    "zipped": "not a whole file",
    "endless": "MB of the disk are free",
    "a page": "no parquet file, but b'<html>",
    "no end": "no whole parquet file",
    "silent file": "nothing came within 2 seconds|timed out",
    "drip": "nothing came within 2 seconds|timed out",
    "half, then silence": "nothing came within 2 seconds|timed out",
    "half, then closed": "IncompleteRead",
}


@pytest.mark.parametrize("way", reasons)
def test_a_hub_that_fails(fetch, way):
    "The reason is said, and nothing that was cut off is kept."
    with hub(way) as port:
        for _ in range(2):
            why = fetch(port)
            assert "could not be fetched from the Hugging Face hub" in why
            assert re.search(reasons[way], why), why
    assert not cache_folder().exists() or list(cache_folder().iterdir()) == []


def test_nobody_there(fetch):
    assert "Connection refused" in fetch(free_port())


def test_a_proxy_that_refuses(fetch, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with hub("slow") as port:
        assert "Connection refused" in fetch(port)


def test_forbidden_to_ask(fetch, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with hub("slow") as port:
        assert "$HF_HUB_OFFLINE is set" in fetch(port)


def test_slow_is_not_broken(fetch, capsys):
    "A download that takes longer than our patience, but goes on, is waited for; its progress is shown."
    with hub("slow") as port:
        assert fetch(port) is None
    assert "downloading Fashion-MNIST, test" in capsys.readouterr().err
    assert [size // 1_000_000 for _, _, size, _ in list_entries(verify=True)] == [1, 1]
    assert fetch(port) is None, "what is cached needs no hub"


def test_a_full_disk_while_it_arrives(fetch, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "_flush", full)
    with hub("slow") as port:
        assert "No space left" in fetch(port)
    assert list(cache_folder().iterdir()) == []


def test_readers_wait_less_than_ten_seconds():
    "For an answer, and then for bytes that do not come."
    default = {k: p.default for k, p in inspect.signature(sources._fetch).parameters.items()}
    assert default["seconds"] + default["patience"] < 10


# IDX files made to do harm


def idx(*shape):
    import struct

    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def test_a_header_of_nothing_that_is_too_large(tmp_path):
    (tmp_path / "a").write_bytes(idx(0, 2**32 - 1, 2**32 - 1))
    with pytest.raises(ValueError, match=str(tmp_path / "a")):
        read_idx(tmp_path / "a")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_header_that_promises_more_than_there_is(tmp_path, zipped):
    import gzip

    raw = idx(2**32 - 1, 2**32 - 1, 2**32 - 1) + b"x" * 100
    (tmp_path / "a").write_bytes(gzip.compress(raw) if zipped else raw)
    with pytest.raises(ValueError, match="promises 79,228,162,458,924,105,385,300,197,375 numbers"):
        read_idx(tmp_path / "a")


def test_a_gzip_bomb(tmp_path):
    "400 MB of zeros in 400 KB, under an honest header, and under one that speaks of ten bytes."
    import gzip
    import tracemalloc

    for shape, part in (((400, 1000, 1000), "not unzipped"), ((10,), "more are there")):
        with gzip.open(tmp_path / "bomb", "wb", compresslevel=1) as file:
            file.write(idx(*shape))
            for _ in range(400):
                file.write(bytes(1_000_000))
        tracemalloc.start()
        with pytest.raises(ValueError, match=part):
            read_idx(tmp_path / "bomb")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6


# verdicts


def test_a_mismatch_names_file_set_and_remedy(tmp_path, patch_known):
    from conftest import digests, make_folder

    patch_known("mnist", sha256=digests())
    folder = make_folder(tmp_path / "x")
    from slowconv.data import load_images

    with pytest.raises(ValueError) as e:
        load_images("fashion_mnist", "train", folder)
    for part in ("MNIST's training images", "train-images-idx3-ubyte.gz", "open mnist"):
        assert part in str(e.value)


def test_a_set_of_ones_own_does_not_bear_the_name(tmp_path, capsys):
    from conftest import make_folder

    from slowconv.data import fashion_mnist

    with fashion_mnist(source=make_folder(tmp_path / "letters")):
        pass
    out = capsys.readouterr().out
    assert out.startswith("letters (not Fashion-MNIST as published): 20 and 10 images")


def test_the_sample_is_verified_too(sample):
    assert verify("fashion_mnist", "test", "sample", *sample["test"]) is False
    images = sample["test"][0].clone()
    images[3, 4, 5] ^= 1
    with pytest.raises(ValueError, match="'sample'.*test images.*sha256"):
        verify("fashion_mnist", "test", "sample", images, sample["test"][1])
    assert verify("fashion_mnist", "test", "/own", *digits(3, 0)) is False
