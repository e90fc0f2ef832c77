"""cores.map is map, on several processes that end whatever happens to the one that started them."""

import os
import signal
import subprocess
import sys
import time

from conftest import ROOT
from lab.files import UserError
from lab.text.cleaning import WORTH, Cores

import pytest


def test_the_same_as_map_and_in_order():
    with Cores(2) as cores:
        assert list(cores.map(int, map(str, range(50)))) == list(range(50))
        assert cores.executor
        assert list(cores.map(len, [])) == []


@pytest.mark.parametrize("count, parts", [(2, WORTH - 1), (1, 99)])
def test_few_parts_or_one_core_need_no_processes(count, parts):
    with Cores(count) as cores:
        assert list(cores.map(str.upper, ["a"] * parts)) == ["A"] * parts
        assert not cores.executor


@pytest.mark.parametrize(
    "function, last, error, words",
    [(int, "x", ValueError, "invalid literal"), (os._exit, 1, UserError, "ended from outside")],
)
def test_what_goes_wrong_in_a_process_is_one_error(function, last, error, words):
    with Cores(2) as cores, pytest.raises(error, match=words):
        list(cores.map(function, [1] * 20 + [last]))


PARENT = """
import time
from lab.cli import run
from lab.text.cleaning import Cores

def main():
    with Cores(2) as cores:
        list(cores.map(abs, range(20)))
        print(*cores.executor._processes, flush=True)
        list(cores.map(time.sleep, [0.01] * 100_000))

if __name__ == "__main__":
    run(main)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_they_end_with_their_parent(tmp_path, how):
    """Ctrl-C goes to all processes of a terminal at once; only the parent may speak of it."""
    (tmp_path / "parent.py").write_text(PARENT)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, env=env, **pipes)
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
