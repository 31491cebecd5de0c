"""Lesson 05's network from ten seeds: does one first filter do it all? And what if all images are turned?

    python benchmarks/inside.py    # eight minutes on one core

Each run is a line in benchmarks/inside.jsonl; what is there already is not run again.
"""

from pathlib import Path

import common
import torch
import torch.nn.functional as F
from common import bs, lr
from fastcore.script import call_parse
from torch import optim
from tqdm.auto import tqdm

from slowconv.convs import get_model, to_device
from slowconv.data import fashion_mnist
from slowconv.training import accuracy, fit


def lesson_run(seed, turned):  # a line of the file
    "Six epochs; test accuracy without each first filter, or with another image's map of it; coats' names."
    torch.manual_seed(seed)
    model, dls = get_model(), fashion_mnist(bs)
    for dl in dls:
        columns = dl.dataset.columns
        columns["image"] = columns["image"].rot90(2 * turned, (1, 2))
    opt = optim.SGD(model.parameters(), lr=lr)
    result = fit(6, model, F.cross_entropy, opt, *dls, log=lambda line: None)
    xb, yb = to_device((columns["image"][:, None] / 255, columns["label"]))
    row = {"seed": seed, "turned": turned, "accuracy": round(result.accuracy, 4)}
    with torch.no_grad():
        maps, one = model[0](xb), torch.eye(4, device=xb.device)[:, :, None, None]
        for name, other in ("without", 0 * maps), ("exchanged", maps.roll(1, 0)):
            mixed = (torch.where(i == 1, other, maps) for i in one)
            row[name] = [round(accuracy(yb, model[1:](m)).item(), 4) for m in mixed]
        counts = (10 * yb + model(xb).argmax(1)).bincount(minlength=100).view(10, 10)
    coats = {"coats called pullovers": counts[4, 2], "pullovers called coats": counts[2, 4]}
    return row | {name: n.item() for name, n in coats.items()}


@call_parse
def main(
    seeds: common.positive = 10,  # how many seeds, from 0 on
    out: str = "",  # where the runs go; beside this script without it
):
    "Run what has not been run."
    torch.set_num_threads(1)
    path = Path(out) if out else Path(__file__).with_suffix(".jsonl")
    rows = common.read_runs(path)
    done = {(r["seed"], r["turned"]) for r in rows}
    for job in tqdm([(seed, turned) for seed in range(seeds) for turned in (False, True)]):
        if job not in done:
            common.add_run(path, lesson_run(*job))
