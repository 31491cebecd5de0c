"""What the loop costs now, beside that of an earlier revision: epochs of the two in turns, in one process.

    git show REVISION:slowconv/training.py > before.py
    python benchmarks/fit_cost.py before.py

Prints the processor time of each epoch, and the median of the ratios of neighbours.
"""

import contextlib
import importlib.util
import io
import sys
import time
from statistics import median

import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import optim

from slowconv import training
from slowconv.convs import get_model
from slowconv.data import fashion_mnist


@call_parse
def main(
    before: str,  # the earlier `slowconv/training.py`
    rounds: int = 9,  # how often to measure each
):
    "Measure."
    spec = importlib.util.spec_from_file_location("slowconv.before", before)
    earlier = importlib.util.module_from_spec(spec)
    sys.modules["slowconv.before"] = earlier
    spec.loader.exec_module(earlier)
    fits, ratios = {"before": earlier.fit, "now": training.fit}, []
    with fashion_mnist() as dls:
        for i in range(rounds + 1):
            seconds, losses = {}, set()
            for name in sorted(fits, reverse=bool(i % 2)):
                torch.manual_seed(42)
                model = get_model()
                opt = optim.SGD(model.parameters(), lr=0.1)
                begin = time.process_time()
                with contextlib.redirect_stdout(io.StringIO()):
                    losses.add(fits[name](1, model, F.cross_entropy, opt, *dls).loss)
                seconds[name] = time.process_time() - begin
            assert len(losses) == 1, "the two do not compute the same"
            if i:  # the first round warms up
                ratios.append(seconds["now"] / seconds["before"])
                print(", ".join(f"{k} {v:.2f} s" for k, v in seconds.items()), flush=True)
    print(f"median ratio {median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
