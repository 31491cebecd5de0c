"What the tests share: a clean environment, small data sets, and IDX files made to order."

import gzip
import hashlib
import os
import shutil
import struct
from contextlib import contextmanager

import hypothesis
import matplotlib
import pytest

# before anything of slowconv or datasets is imported
os.environ.pop("SLOWCONV_DATA", None)
# also of the processes that tests start: small batches gain nothing from two threads, and on a
# busy machine two threads that wait for each other take ten times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")
matplotlib.use("agg")

import datasets  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

from slowconv.data import fashion_sample, load_images  # noqa: E402

datasets.disable_progress_bars()

hypothesis.settings.register_profile(
    "slowconv",
    deadline=None,  # a busy machine is no fault of the code
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("slowconv")


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    "No data set or cache of the developer's own, seeded random numbers, no figure left open."
    monkeypatch.delenv("SLOWCONV_DATA", raising=False)
    monkeypatch.setenv("SLOWCONV_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    yield
    plt.close("all")


@contextmanager
def no_interrupt():
    "A KeyboardInterrupt that gets out fails the test; by itself it would end the whole session of pytest."
    try:
        yield
    except KeyboardInterrupt:
        pytest.fail("the interrupt got out")


def idx_bytes(a):
    "The IDX file of a uint8 tensor, written from the format's description."
    header = struct.pack(f">HBB{a.ndim}I", 0, 8, a.ndim, *a.shape)
    return header + a.contiguous().numpy().tobytes()


def write_idx(path, a):
    "`a` as an IDX file, gzipped if its name says so."
    raw = idx_bytes(a)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def sha256(a):
    return hashlib.sha256(idx_bytes(a)).hexdigest()


def digits(n, seed):
    "`n` made-up images and their labels, other ones for each seed."
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8, generator=g)
    return images, (torch.arange(n) % 10).to(torch.uint8)


def make_folder(folder, n_train=20, n_test=10, seed=0, gz=".gz"):
    "A folder of four IDX files with made-up images."
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n in (("train", n_train), ("t10k", n_test)):
        images, labels = digits(n, seed + n)
        write_idx(folder / f"{stem}-images-idx3-ubyte{gz}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{gz}", labels)
    return folder


@pytest.fixture(scope="session")
def sample():
    "The sample's images and labels, decoded once: a dict from split to (uint8 [N,28,28], int64 [N])."
    return {split: load_images("fashion_mnist", split, "sample") for split in ("train", "test")}


@pytest.fixture(scope="session")
def dsd():
    "70 training and 45 test images of the sample as a DatasetDict, told apart by a column `idx`."
    sizes = {"train": 70, "test": 45}
    splits = {k: ds.select(range(sizes[k])) for k, ds in fashion_sample().items()}
    return datasets.DatasetDict(
        {k: ds.add_column("idx", list(range(len(ds)))) for k, ds in splits.items()}
    )


class Browser:
    "Headless Chromium, with what the tests of pages need."

    def __init__(self, driver):
        self.driver = driver

    def open(self, url, width=1000, scheme="light", height=900):
        "Opens a page in a window of this width, in a light or a dark scheme."
        cdp = self.driver.execute_cdp_cmd
        media = {"name": "prefers-color-scheme", "value": scheme}
        cdp("Emulation.setEmulatedMedia", {"features": [media]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        cdp("Emulation.setDeviceMetricsOverride", size)
        self.driver.get_log("browser")
        self.driver.get(str(url))

    def run(self, script, *args):
        "What a script returns; its arguments are `arguments[0]` and so on."
        return self.driver.execute_script(script, *args)

    def errors(self):
        "What the console has complained about since the page was opened."
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def overflow(self):
        "By how many pixels the page is wider than its window."
        root = "document.documentElement"
        return self.run(f"return {root}.scrollWidth - {root}.clientWidth")


@pytest.fixture(scope="session")
def browser():
    "Chromium driven by selenium; the test is skipped where there is none."
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # nothing but the page itself: no first start, no updates, no host but this machine
    for flag in ("headless", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync",
                 "disable-component-update", "disable-dev-shm-usage", "hide-scrollbars",
                 "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):  # fmt: skip
        options.add_argument(f"--{flag}")
    if getattr(os, "geteuid", lambda: 1)() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield Browser(driver)
    driver.quit()
