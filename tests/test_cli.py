"""lab/cli.py: what every command sets up before it imports anything large."""

import os
import subprocess
import sys

from conftest import ROOT

import pytest


def python(code, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "command, package, name",
    [
        ("train.py", "torch", "torch"),
        ("eval_blimp.py", "numpy", "numpy"),
        ("prepare.py", "yaml", "PyYAML"),
        ("prepare.py", "sentencepiece", "sentencepiece"),
    ],
)
def test_a_missing_package_is_one_line_that_says_both_ways_out(command, package, name):
    code = f"import runpy, sys; sys.modules[{package!r}] = None; runpy.run_path({command!r}, run_name='__main__')"
    done = python(code)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"error: the package {name} is not installed here")
    assert "source .venv/bin/activate" in line and "pip install" in line


def test_another_missing_module_keeps_its_traceback():
    done = python("import lab, nothing_of_this_name")
    assert done.returncode == 1 and "Traceback" in done.stderr


SPINNING = "import os, lab; print([os.environ.get(name) for name in ('GOMP_SPINCOUNT', 'KMP_BLOCKTIME')])"


def test_threads_do_not_wait_by_spinning_unless_the_user_says_how_they_wait():
    assert python(SPINNING).stdout.strip() == "['20000', '1']"
    assert python(SPINNING, OMP_WAIT_POLICY="ACTIVE").stdout.strip() == "[None, None]"
    assert python(SPINNING, GOMP_SPINCOUNT="7").stdout.strip() == "['7', None]"


def test_threads_are_told_how_to_wait_before_pytorch_is_imported():
    """In every command: lab comes first, and PyTorch reads the variables when it loads its threads."""
    for command in ("train", "eval_blimp", "prepare", "tokenizer", "sample", "export"):
        code = "import sys\nclass Watch:\n    def find_spec(self, name, *_):\n"
        code += "        if name == 'torch': import os; print(os.environ.get('GOMP_SPINCOUNT'))\n"
        code += f"sys.meta_path.insert(0, Watch())\nimport {command}"
        assert set(python(code).stdout.split()) <= {"20000"}, command
