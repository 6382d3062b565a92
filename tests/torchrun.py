"""Programs in several processes, as a user starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The last lines of a program of several processes. Without them one run in ten of torch 2.13 is aborted after its end,
# "terminate called without an active exception", while the interpreter is taken down beside a thread of Gloo.
END = "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"


def run(program, *arguments, processes=2, folder=ROOT, limit=120):
    """The output of a program that torchrun starts, or Python alone if it is one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(program), *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= dict(PYTHONPATH=path, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
