"""How long threads should wait for each other by spinning: tokens a second, alone and beside two busy processes.

    python -m bench.speed.threads                 # four minutes; needs a quiet machine; prints a table in Markdown

Training steps of up to 4,096 random tokens with as many threads as there are cores, compiled where train.py compiles.
Each value of GOMP_SPINCOUNT has a process of its own. They take turns of two seconds, in each round alone and beside
the busy ones; printed are the median of the rounds, the least and the most. `default` is GNU OpenMP's own wait,
`passive` is OMP_WAIT_POLICY=PASSIVE. lab/cli.py sets the value for every command.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time

from bench.common import ENVIRONMENT, ask, contestant
from bench.speed.step import make_step
from lab import cli, settings

import torch

PLAIN = {name: value for name, value in ENVIRONMENT.items() if name not in ("OMP_WAIT_POLICY", *cli.SPINNING)}


def environment(spins):
    """The environment of a process whose threads wait as `spins` says."""
    others = {
        "default": {"KMP_BLOCKTIME": "200"},  # LLVM's default: something is set, so lab/cli.py sets nothing
        "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    }
    return PLAIN | others.get(spins, {"GOMP_SPINCOUNT": spins})


@contextlib.contextmanager
def busy(processes):
    """Meanwhile so many other processes keep a core busy each."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    yield
    for process in running:
        process.kill()
        process.wait()


def serve(pipe, config, threads):
    """A process of its own: for each number of seconds it receives, trains that long and sends tokens a second."""
    torch.set_num_threads(threads)
    step, _, _ = make_step(config)
    step()  # compiles
    step()
    pipe.send("ready")
    while (seconds := pipe.recv()) is not None:
        start, steps, passed = time.perf_counter(), 0, 0
        while passed < seconds:
            step()
            steps += 1
            passed = time.perf_counter() - start
        pipe.send(steps * config.train.batch_size * config.model.max_position_embeddings / passed)


def measure(config, args):
    """{(spins, busy processes): tokens a second of each round}"""
    pipes = {}
    for spins in args.spins:
        pipes[spins] = contestant(serve, config, args.threads, env=environment(spins))
        pipes[spins].recv()  # one after the other: the second finds what the first one compiled
    found = {(spins, others): [] for spins in args.spins for others in args.busy}
    for _ in range(args.rounds):
        for (spins, others), rates in found.items():
            with busy(others):
                rates.append(ask(pipes[spins], args.seconds))
    for pipe in pipes.values():
        pipe.send(None)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["quick", "10m-words-3m", "llama-26m"], metavar="NAME")
    parser.add_argument("--spins", nargs="+", default=["default", "passive", "2000", "20000"])
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 2], help="busy processes, a column each")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="of a turn; a step at least")
    args, overrides = parser.parse_known_args(argv)
    print("| preset | spins | " + " | ".join(f"beside {n} busy" if n else "alone" for n in args.busy) + " |")
    print("| --- " * (2 + len(args.busy)) + "|")
    for preset in args.presets:
        config = settings.load_config(preset, overrides)
        s = config.train
        s.gradient_accumulation_steps = 1
        s.batch_size = min(s.batch_size, max(1, 4096 // config.model.max_position_embeddings))
        s.compile = preset != "quick" if s.compile == "auto" else s.compile
        found = measure(config, args)
        for spins in args.spins:
            print(f"| `{preset}` | {spins} |", end="")
            for rates in (found[spins, others] for others in args.busy):
                print(f" {statistics.median(rates):,.0f} ({min(rates):,.0f} - {max(rates):,.0f}) |", end="")
            print(flush=True)


if __name__ == "__main__":
    cli.run(main)
