"""lab/cli.py: how every command begins and ends."""

import os
import signal
import subprocess
import sys

from conftest import ROOT

import pytest


def python(code, environment=(), **kwargs):
    """The code in a Python of its own, in our folder; of threads and buffers only `environment` says anything."""
    ours = ("OMP_", "GOMP_", "KMP_", "PYTHONUNBUFFERED")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 100}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean | dict(environment), **pipe | kwargs)


def command(script, before=""):
    """A command of ours, without arguments, after the code `before`."""
    return python(f"import os, runpy, signal, sys\n{before}\nrunpy.run_path({script!r}, run_name='__main__')")


# --- what is set up before anything large is imported


@pytest.mark.parametrize("script, module, name", [("prepare.py", "yaml", "PyYAML"), ("train.py", "torch", "torch")])
def test_a_missing_package_is_one_line_that_says_both_ways_out(script, module, name):
    done = command(script, f"sys.modules[{module!r}] = None")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"error: the package {name} is not installed here")
    assert "source .venv/bin/activate" in line and "pip install" in line


@pytest.mark.parametrize(
    "environment, expected",
    [({}, "2000 1"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None None"), ({"GOMP_SPINCOUNT": "7"}, "7 None")],
    ids=str,
)
def test_threads_do_not_wait_by_spinning_unless_the_user_says_how_they_wait(environment, expected):
    code = "import os, lab; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))"
    assert python(code, environment).stdout.strip() == expected


WHEN_IMPORTED = """
class When:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            {does}
sys.meta_path.insert(0, When())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "eval_blimp", "prepare", "tokenizer", "sample", "export"])
def test_threads_are_told_how_to_wait_before_pytorch_is_imported(name):
    """In every command: lab comes first, and PyTorch reads the variables when it loads its threads."""
    does = "print(os.environ.get('GOMP_SPINCOUNT'), flush=True); os._exit(0)"
    done = python("import os, sys\n" + WHEN_IMPORTED.format(module="torch", does=does) + f"import {name}")
    assert set(done.stdout.split()) <= {"2000"}


# --- Ctrl-C

PRESS = "os.kill(os.getpid(), signal.SIGINT)"
IN_ARGUMENTS = f"import argparse\nargparse.ArgumentParser.parse_intermixed_args = lambda *_: {PRESS}"
IN_AN_IMPORT = WHEN_IMPORTED.format(module="torch.nn", does=PRESS)


@pytest.mark.slow
@pytest.mark.parametrize("before", [IN_AN_IMPORT, IN_ARGUMENTS], ids=["in an import", "in the arguments"])
def test_ctrl_c_while_a_command_starts(before):
    done = command("train.py", before)
    assert done.returncode == 130 and done.stderr == "interrupted\n"


AT_THE_END = "atexit.register(press)\ncli.run(press)"
WHILE_CLEANING_UP = """
def main():
    try:
        press()
    finally:
        press()
        time.sleep(1000)
cli.run(main)
"""


@pytest.mark.parametrize("code", [AT_THE_END, WHILE_CLEANING_UP], ids=["at the end", "while cleaning up"])
def test_a_second_ctrl_c_says_no_more_and_waits_for_nothing(code):
    done = python(f"import atexit, os, signal, time\nfrom lab import cli\npress = lambda: {PRESS}\n{code}")
    assert done.returncode == 130 and done.stderr == "interrupted\n"


def test_a_command_in_the_background_leaves_ctrl_c_ignored():
    """As under nohup, which has SIGINT ignored before Python starts."""
    code = f"import os, signal\nfrom lab import cli\ncli.run(lambda: {PRESS})"
    done = python(code, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert done.returncode == 0 and done.stderr == ""


# --- output


def test_each_line_is_shown_at_once_in_any_encoding():
    """A line before a long wait stands in a log file during that wait: nothing is left to be flushed."""
    code = "import os\nfrom lab import cli\ncli.run(lambda: print('banner \U0001f642') or os._exit(0))"
    assert python(code, {"PYTHONIOENCODING": "latin-1"}).stdout == "banner ?\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = python("from lab import cli; cli.run(lambda: print('x'))", stdout=full)
    assert done.returncode == 2 and done.stderr == "error: [Errno 28] No space left on device\n"
