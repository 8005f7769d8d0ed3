"""A process that is forked while another thread is inside a kernel: loaders with workers do that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FORKS = """
import os, signal, sys, threading, torch
from kdx import ops

torch.set_num_threads(1)
x, y = torch.randn(8, 4), torch.randn(8, 4)
ops.rkd(x, y, backend="cpu")  # what it imports is there before the threads
stop = threading.Event()

def work():
    while not stop.is_set():
        ops.rkd(x, y, backend="cpu")

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
hung = 0
for _ in range(100):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits for a lock
        ops.rkd(x, y, backend="cpu")
        os._exit(0)
    hung += os.waitpid(child, 0)[1] != 0
stop.set()
for thread in threads:
    thread.join()
print(hung)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_kernel_runs_in_a_child_that_was_forked_while_another_thread_ran_one(require):
    require("rkd", "cpu")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 0
