"""Feed the IDX reader a million files that are wrong in some way: a tensor or a ValueError, nothing else.

    python benchmarks/fuzz_idx.py                     # a million inputs, or ten minutes
    python benchmarks/fuzz_idx.py --inputs 20000      # a quick look

With atheris installed (pip install atheris) coverage leads the way; without it, random changes to good files.
Any other exception ends the run with the input that did it. Needs Linux or macOS.
"""

import atexit
import gzip
import importlib.util
import os
import random
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

from fastcore.script import call_parse

import slowconv.sources
from slowconv.sources import read_idx


def good(rng):
    "An IDX file of up to three axes, zipped or not."
    shape = [rng.randrange(7) for _ in range(rng.randrange(1, 4))]
    n = 1
    for length in shape:
        n *= length
    raw = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + rng.randbytes(n)
    return gzip.compress(raw, rng.randrange(10)) if rng.random() < 0.5 else raw


def change(raw, rng):
    "Some bytes flipped, cut off, put in, doubled or made large, or all of it zipped."
    raw = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        at, what = rng.randrange(len(raw) + 1), rng.randrange(6)
        if what == 0 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del raw[at:]
        elif what == 2:
            raw[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif what == 3:
            raw += raw[at:]
        elif what == 4 and len(raw) > 8:
            raw[4:8] = b"\xff" * 4
        elif what == 5:
            raw = bytearray(gzip.compress(bytes(raw), 1))
    return bytes(raw)


class Fuzz:
    "Tries inputs, and counts what became of them."

    def __init__(self, folder):
        self.path, self.n, self.read, self.begin = Path(folder) / "file", 0, 0, time.monotonic()

    def one(self, raw):
        self.path.write_bytes(raw)
        self.n += 1
        try:
            a = read_idx(self.path)
        except ValueError as e:
            assert str(self.path) in str(e), "the message does not name the file"
            return
        self.read += 1
        head = struct.pack(f">HBB{a.ndim}I", 0, 8, a.ndim, *a.shape)
        plain = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        assert plain == head + a.numpy().tobytes(), "not what the file holds"

    def report(self, how):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{how}: {self.n:,} inputs in {time.monotonic() - self.begin:.0f} s, {self.read:,} read, "
            f"{self.n - self.read:,} refused with a ValueError, no other exception; "
            f"peak memory of the process {peak:.0f} MB",
            flush=True,
        )


def by_atheris(fuzz, inputs, seconds, seed, folder):
    import atheris

    slowconv.sources._read_numbers = atheris.instrument_func(slowconv.sources._read_numbers)
    corpus, rng = Path(folder) / "corpus", random.Random(seed)
    corpus.mkdir()
    for i in range(200):
        (corpus / str(i)).write_bytes(good(rng))

    def one(raw):
        fuzz.one(gzip.compress(raw[1:], 1) if raw[:1] == b"Z" else raw)  # lets it get below the zip
        if fuzz.n >= inputs:
            fuzz.report("atheris")
            os._exit(0)

    atexit.register(fuzz.report, "atheris")
    options = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=4096", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def by_chance(fuzz, inputs, seconds, seed):
    rng = random.Random(seed)
    while fuzz.n < inputs and time.monotonic() - fuzz.begin < seconds:
        fuzz.one(change(good(rng), rng))
    fuzz.report("random changes")


@call_parse
def main(
    inputs: int = 1_000_000,  # how many
    seconds: int = 600,  # or how long
    seed: int = 1,  # start of the random numbers
    plain: bool = False,  # random changes, even if atheris is there
):
    "Fuzz `read_idx`."
    own = "/dev/shm" if Path("/dev/shm").is_dir() else None  # many small files: rather in memory
    with tempfile.TemporaryDirectory(dir=own) as folder:
        fuzz = Fuzz(folder)
        if importlib.util.find_spec("atheris") and not plain:
            by_atheris(fuzz, inputs, seconds, seed, folder)
        else:
            by_chance(fuzz, inputs, seconds, seed)
