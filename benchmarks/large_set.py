"""A data set of 4 GB, gone through by a process that may have 1 GB of memory of its own.

    python benchmarks/large_set.py                             # needs 6 GB of disk below $TMPDIR
    python benchmarks/large_set.py --gigabytes 0.6 --limit 0.4  # a quick look

Writes PNGs as a DatasetDict to disk, decodes it through the cache, goes through it shuffled, and compares
every image with what it was made of; then again from the cache; then without one, which has to fail.
The limit is Linux's RLIMIT_DATA: all memory but pages of files, which the system can drop at will. It
counts from when torch is imported. Needs Linux.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastcore.script import call_parse

side = 512  # pixels

write_code = """
import io, sys
import datasets, numpy as np
from PIL import Image
folder, n, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def png(i):
    small = np.random.default_rng(i).integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small.repeat(16, 0).repeat(16, 1)).save(file, "png", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}

features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
pngs = [png(i) for i in range(64)]
def split(n):
    rows = {"image": [pngs[i % 64] for i in range(n)], "label": list(range(n))}
    return datasets.Dataset.from_dict(rows, features)
datasets.DatasetDict(train=split(n), test=split(64)).save_to_disk(folder)
"""

read_code = """
import json, resource, sys, threading, time
import numpy as np, torch, datasets
from slowconv import data, loaders
folder, side, limit, mapped = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "mapped"
torch.set_num_threads(1)

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(name + ":"))

data_0, anon_0 = status("VmData"), status("RssAnon")
most = int((data_0 + limit) * 1e9)
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
peak = [0.0, 0.0]
def watch():
    while True:
        peak[:] = max(peak[0], status("RssAnon")), max(peak[1], status("VmData"))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
if not mapped:
    loaders.cached = lambda *args: None
begin = time.monotonic()
dsd = datasets.load_from_disk(folder)
with data.get_dls_from_dataset_dict(dsd, data.fashion_collate, bs=32) as dls:
    opened = time.monotonic() - begin
    begin, seen = time.monotonic(), []
    for xb, yb in dls.train:
        for x, y in zip(xb, yb):
            rng, size = np.random.default_rng(int(y) % 64), (side // 16, side // 16, 3)
            small = rng.integers(0, 256, size, dtype=np.uint8)
            want = torch.from_numpy(small).permute(2, 0, 1)
            got = (x * 255).round().to(torch.uint8).reshape(3, side // 16, 16, side // 16, 16)
            assert torch.equal(got, want[:, :, None, :, None].expand_as(got)), "a wrong byte"
        seen += yb.tolist()
assert sorted(seen) == list(range(len(seen))) and seen != sorted(seen)
figures = {"images": len(seen), "decoded GB": len(seen) * 3 * side * side / 1e9, "opening s": opened,
    "epoch s": time.monotonic() - begin, "resident memory of its own at most, GB": peak[0] - anon_0,
    "limited memory at most, GB": peak[1] - data_0}
print(json.dumps({k: round(v, 2) for k, v in figures.items()}))
"""


def run(code, *args, cache):
    env = {**os.environ, "SLOWCONV_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, env=env
    )


@call_parse
def main(
    gigabytes: float = 4.0,  # size of the set when it is decoded
    limit: float = 1.0,  # GB of memory that a process may have of its own
):
    "Go through more than memory holds."
    n = int(gigabytes * 1e9 / (3 * side * side)) + 1
    with tempfile.TemporaryDirectory() as root:
        folder, cache = Path(root) / "saved", Path(root) / "cache"
        done = run(write_code, folder, n, side, cache=cache)
        assert done.returncode == 0, done.stderr
        for what in ("first time, decoding", "second time, from the cache"):
            begin = time.monotonic()
            done = run(read_code, folder, side, limit, "mapped", cache=cache)
            if done.returncode:
                sys.exit(f"{what}: failed\n{done.stderr}")
            figures = done.stdout.splitlines()[-1]
            print(f"{what}: {figures}, {time.monotonic() - begin:.0f} s in all", flush=True)
        done = run(read_code, folder, side, limit, "in memory", cache=cache)
        words = (done.stderr.strip().splitlines() or ["killed"])[-1][:110]
        print(f"without the cache: exit status {done.returncode}: {words}")
        if done.returncode == 0:
            sys.exit("the set fits into the limit, so nothing is shown")
