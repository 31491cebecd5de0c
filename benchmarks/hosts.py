"""One training run on two machines: hosts of their own, which this script makes of network namespaces.

    sudo python benchmarks/hosts.py

Needs Linux, root and iproute2. Trains the lesson's CNN on the sample by Accelerate: on two hosts that find
each other by torchrun, then on two hosts of which one is killed in the third epoch, and then with the same
line again, which goes on from the checkpoint. Prints what it saw; exit status 0 if all ended as it should.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

hosts = {"sca": "10.77.0.1", "scb": "10.77.0.2"}  # names of namespaces, and their addresses
program = """
import sys
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import optim
from slowconv import fashion_mnist, fit, get_model

torch.manual_seed(42)
accelerator = Accelerator(cpu=True)
dls = fashion_mnist(16, source="sample")
model = get_model()
opt = optim.SGD(model.parameters(), lr=0.05)
model, opt, train_dl = accelerator.prepare(model, opt, dls.train)
log = print if accelerator.is_main_process else lambda line: None
fit(6, model, F.cross_entropy, opt, train_dl, dls.valid, checkpoint=sys.argv[1], log=log)
accelerator.end_training()
"""


def ip(*args):
    subprocess.run(["ip", *args], check=True)


def connect():
    "Two hosts and a cable."
    for name in hosts:
        ip("netns", "add", name)
    ip("link", "add", "sca0", "type", "veth", "peer", "name", "scb0")
    for name, address in hosts.items():
        ip("link", "set", f"{name}0", "netns", name)
        ip("-n", name, "addr", "add", f"{address}/24", "dev", f"{name}0")
        ip("-n", name, "link", "set", f"{name}0", "up")
        ip("-n", name, "link", "set", "lo", "up")


def stop(name):
    "End everything that runs on a host."
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    for pid in map(int, pids.stdout.split()):
        os.kill(pid, signal.SIGKILL)


def start(tmp, checkpoint):  # processes, one per host
    "torchrun on both hosts, which write what they print to files."
    runs = []
    for rank, name in enumerate(hosts):
        where = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
        meet = [f"--master-addr={hosts['sca']}", "--master-port=29501"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *where, *meet]
        command = ["ip", "netns", "exec", name, *torchrun, tmp / "run.py", checkpoint]
        env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"{name}0"}
        env["PYTHONUNBUFFERED"] = "1"
        with open(tmp / f"{name}.out", "w") as out, open(tmp / f"{name}.err", "w") as err:
            runs.append(subprocess.Popen(command, env=env, stdout=out, stderr=err))
    return runs


def lines(tmp, name="sca"):
    return re.findall(r"epoch=\d+, .*", (tmp / f"{name}.out").read_text())


def finish(tmp, runs):  # the epochs' lines
    codes = [run.wait(300) for run in runs]
    assert codes == [0, 0], (codes, (tmp / "sca.err").read_text()[:3000])
    assert not lines(tmp, "scb"), "only the first host prints its epochs"
    return lines(tmp)


def main():
    if os.geteuid() or not sys.platform.startswith("linux"):
        sys.exit("hosts.py makes network namespaces: it needs Linux and root")
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        (tmp / "run.py").write_text(program)
        connect()
        try:
            print("two hosts:", *finish(tmp, start(tmp, tmp / "a.pt")), sep="\n  ")
            runs = start(tmp, tmp / "b.pt")
            while len(lines(tmp)) < 2:
                time.sleep(0.05)
            begin = time.monotonic()
            stop("scb")
            code = runs[0].wait(300)
            error = re.search(r"^.*Error: .*$", (tmp / "sca.err").read_text(), re.MULTILINE)
            print(
                f"one host killed: the other ended {time.monotonic() - begin:.0f} s later, with {code}"
            )
            print(f"  {error[0][:150]}")
            assert code != 0
            print("the same line again:", *finish(tmp, start(tmp, tmp / "b.pt")), sep="\n  ")
        finally:
            for name in hosts:
                stop(name)
                ip("netns", "del", name)


if __name__ == "__main__":
    main()
