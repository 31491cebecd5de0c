"""The lesson's run of six epochs from many seeds, beside the table of the original lesson.

    python benchmarks/seeds.py           # fifty seeds: a quarter of an hour on one core
    python benchmarks/seeds.py --save    # and its table goes into benchmarks/README.md

Each run is a line in benchmarks/seeds.jsonl; what is there already is not run again.
"""

from pathlib import Path
from statistics import median, quantiles

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


def lesson_run(seed, dls):  # a line of the file
    torch.manual_seed(seed)
    model = get_model()
    opt = optim.SGD(model.parameters(), lr=lr)
    history = fit(6, model, F.cross_entropy, opt, *dls, log=lambda line: None).history
    return {"seed": seed} | {key: [round(r[key], 4) for r in history] for key in original}


def band(rows, epoch):  # cells: min, median, max, original; first of losses, then of accuracies
    cells = [str(epoch)]
    for key, values in original.items():
        found = [row[key][epoch] for row in rows]
        cells += [f"{v:.3f}" for v in (min(found), median(found), max(found), values[epoch])]
    return cells


@call_parse
def main(
    seeds: common.positive = 50,  # how many seeds, from 0 on
    out: str = "",  # where the runs go; beside this script without it
    save: bool = False,  # put the table into benchmarks/README.md
):
    "Run the lesson from several seeds."
    path = Path(out) if out else Path(__file__).with_suffix(".jsonl")
    rows = common.read_runs(path)
    dls = fashion_mnist(bs)
    for seed in tqdm([s for s in range(seeds) if s not in {r["seed"] for r in rows}], "seeds"):
        rows.append(lesson_run(seed, dls))
        common.add_run(path, rows[-1])
    lasts = [r["validation accuracy"][-1] for r in rows]
    low, _, high = quantiles(lasts, method="inclusive")
    fell = sum(r["validation accuracy"][-1] < max(r["validation accuracy"]) for r in rows)
    cells = ("min", "median", "max", "original")
    parts = [
        common.machine(),
        f"Six epochs, batches of {bs}, SGD with lr={lr}, {len(rows)} seeds. The last accuracy is "
        f"{min(lasts):.3f} to {max(lasts):.3f}, the middle half of them {low:.3f} to {high:.3f}. "
        f"{fell} of the {len(rows)} runs were better after an earlier epoch.",
        "Over the seeds, validation loss on the left and accuracy on the right:",
        common.table(("epoch", *cells, *cells), [band(rows, epoch) for epoch in range(6)]),
    ]
    common.report("seeds", parts, save)
