"Two processes by Accelerate: what lesson 09 does not show. Its cells test the rest."

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
here = Path(sys.executable).parent
program = """
import sys
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import optim
from torch.utils.data import DataLoader, TensorDataset
from slowconv import fit, get_model, run_epoch

torch.set_num_threads(1)
torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
# 203 images in batches of 48: neither the batches nor the last one can be shared out evenly
ds = TensorDataset(torch.rand(203, 1, 28, 28), torch.randint(10, (203,)))
model, valid_dl = get_model(), DataLoader(ds, 48)
opt = optim.SGD(model.parameters(), lr=0.05)
model, opt, train_dl, shared_dl = accelerator.prepare(
    model, opt, DataLoader(ds, 16, shuffle=True), valid_dl
)


class GatheredLabels:
    def __iter__(self):
        for xb, yb in shared_dl:
            yield xb, accelerator.gather_for_metrics(yb)


def gather(model, xb, pred):
    return pred if model.training else accelerator.gather_for_metrics(pred)


hook = model.register_forward_hook(gather)
loss, accuracy = fit(
    2, model, F.cross_entropy, opt, train_dl, GatheredLabels(), log=accelerator.print
)
hook.remove()
alone = run_epoch(model, F.cross_entropy, valid_dl)  # all images in one process
assert abs(loss - alone[0]) < 1e-6 and abs(accuracy - alone[1]) < 1e-6, (loss, accuracy, alone)
accelerator.end_training()
"""
launchers = {
    "torchrun": [here / "torchrun", "--standalone", "--nproc-per-node=2"],
    "accelerate": [here / "accelerate", "launch", "--multi_gpu", "--num_processes=2",
                   "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"],
}  # fmt: skip


@pytest.mark.parametrize("name", launchers)
def test_validation_on_two_processes_is_exact(tmp_path, name):
    (tmp_path / "program.py").write_text(program)
    command = [*launchers[name], tmp_path / "program.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[:3000]
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch=")]
    assert [line[:8] for line in lines] == ["epoch=0,", "epoch=1,"], "only the first process prints"
