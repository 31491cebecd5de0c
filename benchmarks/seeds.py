"""The lesson's run of six epochs from many seeds, beside the table of the original lesson.

    python benchmarks/seeds.py             # ten seeds, some three minutes on two cores
    python benchmarks/seeds.py --seeds 3

Prints the last accuracy of each seed and the band of all, and writes both to benchmarks/seeds.md.
Exits with an error if any seed ends below 0.80.
"""

import sys
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from epoch import bs, lr, machine
from fastcore.script import call_parse
from torch import optim
from tqdm.auto import tqdm

from slowconv.convs import get_model
from slowconv.data import fashion_mnist, find_source
from slowconv.training import fit

original = {
    "validation loss": (1.041, 0.767, 0.623, 0.561, 0.515, 0.483),
    "validation accuracy": (0.62, 0.73, 0.78, 0.80, 0.81, 0.82),
}
least = 0.80  # accuracy after the last epoch


def lesson_run(seed, dls):  # records of the epochs
    "The six epochs, without their lines."
    torch.manual_seed(seed)
    model = get_model()
    opt = optim.SGD(model.parameters(), lr=lr)
    return fit(6, model, F.cross_entropy, opt, *dls, log=lambda line: None).history


def band(histories, epoch, key, digits):  # cells of a row: min, median, max, original
    values = [history[epoch][key] for history in histories]
    cells = min(values), median(values), max(values), original[key][epoch]
    return " | ".join(f"{v:.{digits}f}" for v in cells)


def report(histories):  # markdown
    key = "validation accuracy"
    rows = [
        f"| {i} | {band(histories, i, 'validation loss', 3)} | {band(histories, i, key, 3)} |"
        for i in range(6)
    ]
    lasts = [f"| {seed} | {h[-1]['validation accuracy']:.4f} |" for seed, h in enumerate(histories)]
    cells = "min | median | max | original"
    lines = [
        f"{machine()}.",
        "",
        f"Six epochs, batches of {bs}, SGD with lr={lr}, {len(histories)} seeds:",
        "",
        "| seed | last accuracy |",
        "| ---: | ---: |",
        *lasts,
        "",
        "Over the seeds, validation loss on the left and accuracy on the right:",
        "",
        f"| epoch | {cells} | {cells} |",
        "| ---: " * 9 + "|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


@call_parse
def main(
    seeds: int = 10,  # how many seeds, from 0 on
):
    "Run the lesson from several seeds."
    if seeds < 1:
        sys.exit(f"seeds: --seeds {seeds}: expected 1 or more")
    source = find_source("fashion_mnist")
    if source == "sample":
        sys.exit(
            "seeds: the sample is too small for the lesson's run; the whole of Fashion-MNIST is needed"
        )
    dls = fashion_mnist(bs, source=source)
    histories = [lesson_run(seed, dls) for seed in tqdm(range(seeds), "seeds")]
    text = report(histories)
    print(text, end="")
    (Path(__file__).parent / "seeds.md").write_text(text, encoding="utf-8")
    low = {
        seed: h[-1]["validation accuracy"]
        for seed, h in enumerate(histories)
        if h[-1]["validation accuracy"] < least
    }
    if low:
        sys.exit(f"seeds: last accuracy under {least}: {low}")
