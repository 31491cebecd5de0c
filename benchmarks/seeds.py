"""The lesson's run of six epochs from many seeds, beside the table of the original lesson.

    python benchmarks/seeds.py             # ten seeds: some three minutes on two cores
    python benchmarks/seeds.py --seeds 3
    python benchmarks/seeds.py --save      # and its tables go into benchmarks/README.md

Exits with an error if any seed ends below 0.80.
"""

import sys
from statistics import median

import common
import torch
import torch.nn.functional as F
from common import bs, lr
from fastcore.script import call_parse
from torch import optim
from tqdm import tqdm

from slowconv.convs import get_model
from slowconv.data import fashion_mnist
from slowconv.training import fit

original = {
    "validation loss": (1.041, 0.767, 0.623, 0.561, 0.515, 0.483),
    "validation accuracy": (0.62, 0.73, 0.78, 0.80, 0.81, 0.82),
}
least = 0.80  # accuracy after the last epoch


def lesson_run(seed, dls):  # records of the epochs
    torch.manual_seed(seed)
    model = get_model()
    opt = optim.SGD(model.parameters(), lr=lr)
    return fit(6, model, F.cross_entropy, opt, *dls, log=lambda line: None).history


def band(
    histories, epoch
):  # cells of a row: min, median, max, original; first of losses, then of accuracies
    cells = [str(epoch)]
    for key, values in original.items():
        found = [history[epoch][key] for history in histories]
        cells += [f"{v:.3f}" for v in (min(found), median(found), max(found), values[epoch])]
    return cells


@call_parse
def main(
    seeds: common.positive = 10,  # how many seeds, from 0 on
    save: bool = False,  # put the tables into benchmarks/README.md
):
    "Run the lesson from several seeds."
    dls = fashion_mnist(bs)
    histories = [lesson_run(seed, dls) for seed in tqdm(range(seeds), "seeds")]
    lasts = {seed: history[-1]["validation accuracy"] for seed, history in enumerate(histories)}
    cells = ("min", "median", "max", "original")
    parts = [
        common.machine(),
        f"Six epochs, batches of {bs}, SGD with lr={lr}, {seeds} seeds:",
        common.table(("seed", "last accuracy"), [(str(s), f"{a:.4f}") for s, a in lasts.items()]),
        "Over the seeds, validation loss on the left and accuracy on the right:",
        common.table(("epoch", *cells, *cells), [band(histories, epoch) for epoch in range(6)]),
    ]
    common.report("seeds", parts, save)
    if low := {seed: accuracy for seed, accuracy in lasts.items() if accuracy < least}:
        sys.exit(f"seeds: last accuracy under {least}: {low}")
