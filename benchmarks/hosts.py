"""One training run on two hosts, which this script makes of Linux network namespaces.

    sudo python benchmarks/hosts.py  # three minutes; needs Linux, root, iproute2 and the extra `scale`

Trains the lesson's CNN on the sample by Accelerate: in one process; on two hosts that share each batch, which
must come to the same loss; on two hosts of which one is killed in the third epoch; and with the same line
again, which goes on from the checkpoint. Exit status 0 if all ended as it should.
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
import torch.distributed.nn  # before a connection is open: see lesson 09
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from torch import optim
from slowconv import fashion_mnist, fit, get_model

torch.manual_seed(42)
# each batch of 40 is split between the processes, and all of them shuffle alike
config = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True)
accelerator = Accelerator(cpu=True, dataloader_config=config)
dls = fashion_mnist(40, source="sample")
model = get_model().double()  # differences by rounding grow from step to step: begin with 16 digits
model.register_forward_pre_hook(lambda model, args: args[0].double())
opt = optim.SGD(model.parameters(), lr=0.05)
model, opt, train_dl = accelerator.prepare(model, opt, dls.train)
log = print if accelerator.is_main_process else lambda line: None
result = fit(6, model, F.cross_entropy, opt, train_dl, dls.valid, checkpoint=sys.argv[1], log=log)
log(f"loss {result.loss!r}")
model, opt = accelerator.free_memory(model, opt)
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


def start(tmp, checkpoint, names=tuple(hosts)):  # processes, one per host
    "torchrun on some hosts; what they print goes to files."
    runs = []
    for rank, name in enumerate(names):
        where = [f"--nnodes={len(names)}", f"--node-rank={rank}", "--nproc-per-node=1"]
        meet = [f"--master-addr={hosts['sca']}", "--master-port=29501"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *where, *meet]
        command = ["ip", "netns", "exec", name, *torchrun, tmp / "run.py", tmp / checkpoint]
        env = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"{name}0", "PYTHONUNBUFFERED": "1"}
        with open(tmp / f"{name}.out", "w") as out, open(tmp / f"{name}.err", "w") as err:
            runs.append(subprocess.Popen(command, env=os.environ | env, stdout=out, stderr=err))
    return runs


def epochs(tmp):  # lines that the first host has printed
    return re.findall(r"^epoch=.*", (tmp / "sca.out").read_text(), re.MULTILINE)


def finish(what, tmp, runs):  # loss of the last epoch
    codes = [run.wait(300) for run in runs]
    if any(codes):
        sys.exit(f"{what}: exit status {codes}\n{(tmp / 'sca.err').read_text()[:3000]}")
    loss = re.search(r"^loss (.*)", (tmp / "sca.out").read_text(), re.MULTILINE)[1]
    print(f"{what}: {len(epochs(tmp))} epochs, {epochs(tmp)[-1]}, exactly {loss}", flush=True)
    return float(loss)


def main():
    if not sys.platform.startswith("linux") or os.geteuid():
        sys.exit("hosts: it makes network namespaces, which needs Linux and root")
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        (tmp / "run.py").write_text(program)
        try:
            connect()
            alone = finish("one process", tmp, start(tmp, "one.pt", ["sca"]))
            both = finish("two hosts", tmp, start(tmp, "two.pt"))
            runs = start(tmp, "killed.pt")
            while len(epochs(tmp)) < 2 and runs[0].poll() is None:
                time.sleep(0.05)
            stop("scb")
            begin = time.monotonic()
            status, seconds = runs[0].wait(300), time.monotonic() - begin
            error = re.search(r"^.*Error: .*$", (tmp / "sca.err").read_text(), re.MULTILINE)
            print(f"one host killed: {seconds:.0f} s later the other ended with {status}")
            print(f"  {error[0] if error else 'no error':.150}")
            finish("the same line again", tmp, start(tmp, "killed.pt"))
        finally:
            for name in hosts:
                stop(name)
                subprocess.run(["ip", "netns", "del", name])
    if not status or abs(alone - both) > 1e-9:
        sys.exit(f"hosts: losses {alone} and {both}; exit status {status} beside a killed host")


if __name__ == "__main__":
    main()
