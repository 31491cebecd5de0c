"Lesson 09's program under the launchers people use, with batches that can't be dealt out evenly."

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from slowconv import get_model, run_epoch

pytest.importorskip("accelerate")
here = Path(sys.executable).parent
lesson = Path(__file__).parents[1] / "nbs" / "09_scale.ipynb"
launchers = {
    "torchrun": [here / "torchrun", "--standalone", "--nproc-per-node=2"],
    "accelerate": [here / "accelerate", "launch", "--multi_gpu", "--num_processes=2",
                   "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"],
}  # fmt: skip


def get_program(name):
    "What a cell of the lesson writes into the file `name`."
    cells = ["".join(cell["source"]) for cell in json.loads(lesson.read_text())["cells"]]
    magic = f"%%writefile {name}\n"
    return next(cell for cell in cells if cell.startswith(magic)).removeprefix(magic)


@pytest.mark.parametrize("name", launchers)
def test_validation_on_two_processes_is_exact(tmp_path, name, sample):
    # a thread that still holds a message while Python shuts down aborts a finished program now and then
    closed = """
from pathlib import Path
names = [f.read_text() for f in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in names), names
"""
    (tmp_path / "train.py").write_text(get_program("train.py") + closed)
    # 5,000 and 1,000 images in batches of 48: neither the batches nor the last one come out even
    command = [*launchers[name], "train.py", "48", "2", "run.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[:3000]
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch=")]
    assert [line[:8] for line in lines] == ["epoch=0,", "epoch=1,"], "only the first process prints"
    state, model = torch.load(tmp_path / "run.pt"), get_model().cpu()
    model.load_state_dict({k.removeprefix("module."): v for k, v in state["model"].items()})
    images, labels = sample["test"]
    alone = run_epoch(model, F.cross_entropy, [(images[:, None] / 255, labels)])
    gathered = [state["history"][-1][f"validation {name}"] for name in ("loss", "accuracy")]
    assert gathered == pytest.approx(alone, abs=1e-5)
