"""cores.map is map, on several processes that end whatever happens to the one that started them."""

import os
import signal
import subprocess
import sys
import time

from conftest import ROOT
from lab.files import UserError
from lab.text.cores import WORTH, Cores

import pytest


def test_the_same_as_map_and_in_order():
    items = [str(i) for i in range(50)]
    with Cores(2) as cores:
        assert list(cores.map(int, iter(items))) == list(range(50))
        assert cores.executor
        assert list(cores.map(len, [])) == []


def test_few_parts_need_no_processes():
    with Cores(2) as cores:
        assert list(cores.map(str.upper, ["a"] * (WORTH - 1))) == ["A"] * (WORTH - 1)
        assert not cores.executor
    with Cores(1) as cores:
        assert list(cores.map(str.upper, ["a"] * 99)) == ["A"] * 99
        assert not cores.executor


def test_only_a_few_parts_are_under_way():
    taken = []

    def items():
        for i in range(60):
            taken.append(i)
            yield i

    with Cores(2) as cores:
        for done, _ in enumerate(cores.map(abs, items())):
            assert len(taken) <= done + WORTH + 6


def test_errors_come_through():
    with Cores(2) as cores, pytest.raises(ValueError, match="invalid literal"):
        list(cores.map(int, ["1"] * 20 + ["x"]))


def test_a_process_that_is_killed_is_one_line():
    with Cores(2) as cores, pytest.raises(UserError, match="ended from outside"):
        list(cores.map(os._exit, [1] * 20))


PARENT = """
import time
from lab.cli import run
from lab.text.cores import Cores

def main():
    with Cores(2) as cores:
        list(cores.map(abs, range(20)))
        print(*cores.executor._processes, flush=True)
        list(cores.map(time.sleep, [0.01] * 100_000))

if __name__ == "__main__":
    run(main)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_they_end_with_their_parent(tmp_path, how):
    """Ctrl-C goes to all processes of a terminal at once; only the parent may speak of it."""
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, "parent.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = parent.stdout.readline().split()
    assert len(children) == 2
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)
    else:
        parent.send_signal(how)
    _, err = parent.communicate(timeout=100)
    if how == signal.SIGINT:
        assert parent.returncode == 130 and err == "interrupted\n"
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
