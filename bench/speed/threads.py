"""How long threads should wait for each other by spinning: tokens a second, alone and beside two busy processes.

    python -m bench.speed.threads --presets quick 10m-words-3m --spins default passive 2000 20000 100000

Each cell is bench.speed.step in a process of its own with as many threads as there are cores, compiled; in turns, so
that every value of GOMP_SPINCOUNT has its turn alone and beside the busy ones in each round. `default` is GNU OpenMP's
own, `passive` is OMP_WAIT_POLICY=PASSIVE. lab/cli.py sets the value for every command. Needs a quiet machine.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys

from bench.common import ENVIRONMENT, closing_block, module
from lab import cli
from lab.files import UserError

PLAIN = {name: value for name, value in ENVIRONMENT.items() if name not in ("OMP_WAIT_POLICY", *cli.SPINNING)}


def environment(spins):
    if spins == "default":
        return {**PLAIN, "KMP_BLOCKTIME": "200"}  # LLVM's default: something is set, so lab/cli.py sets nothing
    if spins == "passive":
        return {**PLAIN, "OMP_WAIT_POLICY": "PASSIVE"}
    return {**PLAIN, "GOMP_SPINCOUNT": spins}


@contextlib.contextmanager
def busy(processes):
    """So many processes that want a core all the time."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    yield
    for process in running:
        process.kill()
        process.wait()


def tokens_per_second(preset, spins, threads, overrides):
    command = module("bench.speed.step", "--preset", preset, "train.compile=true", *overrides)
    env = environment(spins) | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{preset}: {done.stderr[-300:]}")
    return float(closing_block(done.stdout)["tokens_per_second"])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["quick", "10m-words-3m", "llama-26m"], metavar="NAME")
    parser.add_argument("--spins", nargs="+", default=["default", "passive", "2000", "20000", "100000"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    args, overrides = parser.parse_known_args(argv)
    print(f"{'preset':<16}{'spins':>10}{'alone, tokens/s':>18}{'beside two busy':>18}")
    for preset in args.presets:
        found = {(spins, others): [] for spins in args.spins for others in (0, 2)}
        for _ in range(args.rounds):
            for (spins, others), rates in found.items():
                with busy(others):
                    rates.append(tokens_per_second(preset, spins, args.threads, overrides))
        for spins in args.spins:
            alone, beside = (statistics.median(found[spins, others]) for others in (0, 2))
            print(f"{preset:<16}{spins:>10}{alone:>18,.0f}{beside:>18,.0f}", flush=True)


if __name__ == "__main__":
    cli.run(main)
