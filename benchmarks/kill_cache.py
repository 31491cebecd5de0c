"""Kill a process at random moments while it fills the cache; afterwards every byte has to be right.

    python benchmarks/kill_cache.py                  # 50 kills, then 10 races of two processes

Needs fork and SIGKILL: Linux or macOS.
"""

import io
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import datasets
import numpy as np
from fastcore.script import call_parse
from PIL import Image
from tqdm.auto import tqdm

from slowconv import cache

n, side = 4000, 64


def png(a):
    file = io.BytesIO()
    Image.fromarray(a).save(file, "png", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}


def make():
    "Made-up images, and a data set of their PNGs."
    images = np.random.default_rng(0).integers(0, 256, (n, side, side), dtype=np.uint8)
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    rows = {"image": [png(a) for a in images], "label": list(range(n))}
    return images, datasets.Dataset.from_dict(rows, features).with_format("torch")


def fill(images, ds):
    "Decode through the cache, and compare with what the images were made of; exit status 0 if all is right."

    def chunks():
        for i in range(0, n, 50):
            yield {name: v.numpy() for name, v in ds[i : i + 50].items()}

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a broken entry would be made again with a warning
        columns = cache.cached(ds, chunks, images.nbytes)
    assert np.array_equal(columns["image"][:, 0], images), "a wrong byte"
    assert columns["label"].tolist() == list(range(n)), "a wrong label"


def entries(folder):
    return [p.name for p in folder.iterdir() if re.fullmatch("[0-9a-f]{64}", p.name)]


def state(folder):
    "What a kill left behind."
    if not folder.is_dir() or not any(folder.iterdir()):
        return "nothing"
    return "the whole entry" if entries(folder) else "a part, under its temporary name"


@call_parse
def main(
    kills: int = 50,  # how many processes are killed
    races: int = 10,  # how often two begin at once
    seed: int = 1,  # of the random moments
):
    "Kill and race."
    rng, left, wrong, lost = random.Random(seed), {}, [], []
    args, fork = make(), multiprocessing.get_context("fork")

    def start():
        process = fork.Process(target=fill, args=args)
        process.start()
        return process

    def is_right(process):
        process.join()
        return process.exitcode == 0

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "cache"
        os.environ["SLOWCONV_CACHE"] = str(folder)
        begin = time.monotonic()
        assert is_right(start())
        seconds = time.monotonic() - begin
        shutil.rmtree(folder)
        print(f"filling takes {seconds:.2f} s; kills come within that time", flush=True)
        for i in tqdm(range(kills), "kills"):
            process = start()
            time.sleep(rng.uniform(0, seconds))
            process.kill()
            process.join()
            found = state(folder)
            left[found] = left.get(found, 0) + 1
            if not is_right(start()) or len(entries(folder)) != 1:
                wrong.append((i, found, sorted(p.name for p in folder.iterdir())))
            shutil.rmtree(folder)
        for i in tqdm(range(races), "races"):
            fine = [is_right(process) for process in (start(), start())]
            if not all(fine) or len(entries(folder)) != 1:
                lost.append((i, fine, sorted(p.name for p in folder.iterdir())))
            shutil.rmtree(folder)
    print(
        f"{kills} kills left: {left}; afterwards {kills - len(wrong)} opened with every byte right"
    )
    print(f"{races} races of two: {races - len(lost)} ended with both right and one entry")
    print(*wrong, *lost, sep="\n", end="")
    sys.exit(bool(wrong or lost))
