"""One training run on two machines: hosts of their own, which this script makes of network namespaces.

    sudo python benchmarks/hosts.py

Needs Linux, root and iproute2. Trains the lesson's CNN on the sample: once in one process, once on two
hosts that find each other by torchrun's rendezvous, and once on two hosts of which one is killed in the
middle of an epoch, and cut off from the other in a second try; then both start again with the same line,
and go on from the checkpoint. Prints what it saw, and fails if figures differ.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slowconv.processes import patience

hosts = {"sca": "10.77.0.1", "scb": "10.77.0.2"}  # names of namespaces, and their addresses
epochs = 6
program = """
import sys
import torch
import torch.nn.functional as F
from torch import optim
from slowconv import fashion_mnist, fit, get_model

torch.manual_seed(42)
bs, path = int(sys.argv[1]), sys.argv[2]
model = get_model().double()
with fashion_mnist(bs, source="sample") as dls:
    loss = lambda pred, yb: F.cross_entropy(pred, yb)
    model.register_forward_pre_hook(lambda m, xs: (xs[0].double(),))
    opt = optim.SGD(model.parameters(), lr=0.1)
    result = fit(EPOCHS, model, loss, opt, *dls, checkpoint=path)
print("ended with", repr(result.loss), flush=True)
""".replace("EPOCHS", str(epochs))


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
        cable(name, "up")
        ip("-n", name, "link", "set", "lo", "up")


def cable(name, state):
    ip("-n", name, "link", "set", f"{name}0", state)


def start(tmp, checkpoint):
    "torchrun on both hosts: a dict from host to process."
    runs = {}
    for rank, name in enumerate(hosts):
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",  # so that its lines are seen when they are printed
            "GLOO_SOCKET_IFNAME": f"{name}0",
        }
        where = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1", "--max-restarts=0"]
        meet = [f"--master-addr={hosts['sca']}", "--master-port=29501"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *where, *meet]
        runs[name] = subprocess.Popen(
            ["ip", "netns", "exec", name, *torchrun, tmp / "run.py", "16", checkpoint],
            env=env, stdout=open(tmp / f"{name}.out", "w"), stderr=open(tmp / f"{name}.err", "w"),
        )  # fmt: skip
    return runs


def stop(name):
    "Everything that runs on a host, at once: torchrun puts its workers into sessions of their own."
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    for pid in map(int, pids.stdout.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def figures(text):
    return re.findall(r"epoch=\d+, .*", text), re.findall(r"ended with (.*)", text)


def finish(runs, tmp, limit=300):
    "What the first host printed, once both are done."
    for run in runs.values():
        assert run.wait(limit) == 0, (tmp / "sca.err").read_text()[-3000:]
    lines, ends = figures((tmp / "sca.out").read_text())
    assert not figures((tmp / "scb.out").read_text())[0], "only the first host prints its epochs"
    return lines, ends


def until_epoch(tmp, n, limit=200):
    "Waits until the first host has printed so many epochs, and a little longer."
    end = time.monotonic() + limit
    while len(figures((tmp / "sca.out").read_text())[0]) < n:
        assert time.monotonic() < end, (tmp / "sca.err").read_text()[-3000:]
        time.sleep(0.05)
    time.sleep(0.3)


def broken(tmp, what, harm, mend):
    "Harms a run in the middle of its third epoch, and starts it again with the same line."
    checkpoint = tmp / f"{what.split()[0]}.safetensors"
    runs = start(tmp, checkpoint)
    until_epoch(tmp, 2)
    begin = time.monotonic()
    harm()
    assert runs["sca"].wait(60 * patience + 60), "it ended as if nothing had happened"
    seconds = time.monotonic() - begin
    lines = re.findall("fit: another process.*", (tmp / "sca.err").read_text())
    assert lines, (tmp / "sca.err").read_text()[-3000:]
    print(f"{what}: the other one stopped after {seconds:.0f} s, with {lines[0]!r}")
    for name, run in runs.items():
        stop(name)
        run.wait()
    mend()
    lines, ends = finish(start(tmp, checkpoint), tmp)
    print(
        f"   started again with the same line, it trained the last {len(lines)} of {epochs} epochs"
    )
    return ends


def main():
    if os.geteuid() or not sys.platform.startswith("linux"):
        sys.exit("hosts.py makes network namespaces: it needs Linux and root")
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        (tmp / "run.py").write_text(program)
        alone = [sys.executable, tmp / "run.py", "32", tmp / "alone.safetensors"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(alone, capture_output=True, text=True, check=True, env=env)
        lines, ends = figures(done.stdout)
        print(f"one process: {lines[-1]}, exactly {ends[0]}")
        connect()
        try:
            seen = [(lines, ends), finish(start(tmp, tmp / "both.safetensors"), tmp)]
            print(f"two hosts:   {seen[1][0][-1]}, exactly {seen[1][1][0]}")
            killed = broken(tmp, "killed host", lambda: stop("scb"), lambda: None)
            cut = broken(tmp, "cut cable", lambda: cable("scb", "down"), lambda: cable("scb", "up"))
        finally:
            for name in hosts:
                stop(name)
                ip("netns", "del", name)
        assert seen[1][0] == lines, "two hosts gave other figures than one process"
        assert abs(float(seen[1][1][0]) - float(ends[0])) < 1e-9
        assert killed == cut == seen[1][1], "a run that went on ended elsewhere"
        print(
            "a run that was harmed and went on ends with the loss of one that was not, to the last bit"
        )


if __name__ == "__main__":
    main()
