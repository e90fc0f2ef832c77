"""Runs killed at random instants end like undisturbed ones: a short run of tests/kill.py."""

import subprocess
import sys

from conftest import ROOT


def test_killed_at_random_instants_nothing_is_lost():
    command = [sys.executable, "-m", "tests.kill", "--kills", "6", "--steps", "12"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: 6\n" in done.stdout and "differences: 0\n" in done.stdout, done.stdout
