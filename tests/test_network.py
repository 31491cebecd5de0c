"A hub that fails in every way we know: the sample, with its reason, in bounded time."

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from conftest import digits

from slowconv.sources import known_sets, read_idx, verify

repo = known_sets["fashion_mnist"].hub[0]
body = bytes(range(256)) * 4000  # 1 MB


class Hub(http.server.BaseHTTPRequestHandler):
    "`server.way` says what becomes of the file."

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        way = self.server.way
        if way == "no answer":
            self.server.over.wait(30)
            return
        status = int(way) if way in ("404", "500") else 200
        self.send_response(status)
        if way != "no length":
            self.send_header("Content-Length", str(len(body) if status == 200 else 0))
        self.end_headers()
        if status != 200:
            return
        if way == "silent file":
            self.server.over.wait(30)
            return
        if way == "slow":
            for i in range(0, len(body), 100_000):
                self.send(body[i : i + 100_000])
                time.sleep(0.4)
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


ask = """
import json, time, warnings
import huggingface_hub
from slowconv import sources
from slowconv.cache import cache_folder
sources.known_sets["fashion_mnist"].system = None
begin = time.monotonic()
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    found = sources.find_source("fashion_mnist")
said = [str(w.message) for w in said if w.category is UserWarning]
seconds = time.monotonic() - begin
folder = cache_folder()
left = [p.name for p in folder.iterdir()] if folder.is_dir() else []
print(json.dumps({"source": found, "said": said, "seconds": seconds, "left": left}))
"""


def start(home, port, **env):
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()
    }
    kept |= {"HF_HOME": str(home), "SLOWCONV_CACHE": str(home / "slowconv")}
    kept |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", **env}
    return subprocess.Popen(
        [sys.executable, "-c", ask],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=kept,
    )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


ways = [
    "no answer",
    "404",
    "500",
    "silent file",
    "half, then silence",
    "half, then closed",
    "no length",
    "slow",
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    "What became of each, all of them asked at once: they mostly wait."
    from contextlib import ExitStack

    with ExitStack() as stack:
        ports = {way: stack.enter_context(hub(way)) for way in ways}
        asked = {way: (port, {}) for way, port in ports.items()}
        asked["nobody there"] = free_port(), {}
        refusing = f"http://127.0.0.1:{free_port()}"
        proxies = {"HTTP_PROXY": refusing, "HTTPS_PROXY": refusing, "NO_PROXY": ""}
        asked["a proxy that refuses"] = ports["slow"], proxies
        asked["forbidden to ask"] = ports["slow"], {"HF_HUB_OFFLINE": "1"}
        processes = {
            way: start(tmp_path_factory.mktemp("home"), port, **env)
            for way, (port, env) in asked.items()
        }
        out = {}
        for way, process in processes.items():
            words, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors
            out[way] = json.loads(words.splitlines()[-1]) | {"errors": errors}
    return out


reasons = {
    "no answer": "TimeoutError: no answer within|[Tt]imed? ?out",
    "404": "404",
    "500": "500",
    "silent file": "[Tt]imed out",
    "half, then silence": "[Tt]imed out",
    "half, then closed": "IncompleteRead|500,000 bytes",
    "no length": "content-length",
    "nobody there": "Connection",
    "a proxy that refuses": "Proxy",
    "forbidden to ask": "HF_HUB_OFFLINE",
}


@pytest.mark.parametrize("way", reasons)
def test_the_sample_and_why(answers, way):
    got = answers[way]
    assert got["source"] == "sample"
    assert len(got["said"]) == 1
    assert "could not be fetched from the Hugging Face hub" in got["said"][0]
    assert got["left"] == []
    assert re.search(reasons[way], got["said"][0]), got["said"]
    assert "sample" in got["said"][0] and "apt-get install" in got["said"][0]


def test_slow_is_not_broken(answers):
    "A download that takes longer than our patience, but goes on, is waited for; its progress is shown."
    got = answers["slow"]
    assert got["source"] == "hub" and got["said"] == []
    assert got["seconds"] > 5 and len(got["left"]) == 2
    assert "downloading" in got["errors"]


def test_nothing_that_was_cut_off_is_taken_for_whole(tmp_path):
    with hub("half, then silence") as port:
        for _ in range(2):
            process = start(tmp_path, port)
            words, errors = process.communicate(timeout=60)
            assert json.loads(words.splitlines()[-1])["source"] == "sample", errors


# IDX files made to do harm


def idx(*shape):
    import struct

    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


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
