"""From the command to the first training step: where the time goes, by the clock and in seconds of the processor.

    python -m bench.speed.startup                   # preset quick, after `python prepare.py --preset quick`: a minute
    python -m bench.speed.startup --preset sllama --compile false

Runs train.py with two steps in a process of its own, with the clock read at six points. Other programs on the machine
lengthen the first number and hardly the second, which does not count compilers and other children. What the imports
consist of: python -X importtime -c "import train"
"""

import argparse
import subprocess
import sys
import tempfile
import time

from bench.common import ENVIRONMENT, closing_block, last_line, module, write_json

POINTS = ["python", "imports", "model, data", "first validation", "first step", "second step"]


def watched(arguments):
    """train.main(arguments), with a line `clock: POINT|TIME|PROCESSOR TIME` at the end of each of POINTS."""
    points = iter(POINTS)

    def mark():
        if point := next(points, None):
            print(f"clock: {point}|{time.time()}|{time.process_time()}", flush=True)

    mark()
    from lab import cli
    import train

    mark()
    validate, step, calls = train.validate, train.train_step, []

    def marked_validate(*args, **kwargs):
        if not calls:
            mark()
        calls.append("validate")
        return validate(*args, **kwargs)

    def marked_step(*args, **kwargs):
        if "step" not in calls:
            mark()
        calls.append("step")
        out = step(*args, **kwargs)
        mark()
        return out

    train.validate, train.train_step = marked_validate, marked_step
    cli.run(lambda: train.main(arguments))


def measure(arguments, steps=2, environment=ENVIRONMENT):
    """A short run: {point: (seconds, processor's seconds) since the point before}, and its closing block."""
    with tempfile.TemporaryDirectory() as out:
        began = time.time()
        short = [f"train.max_steps={steps}", "train.epochs=null", f"train.out={out}"]
        command = module("bench.speed.startup", "--watched", *arguments, *short)
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(last_line(done.stderr))
    spent, last = {}, (began, 0.0)
    for line in done.stdout.splitlines():
        if line.startswith("clock: "):
            point, wall, processor = line.removeprefix("clock: ").split("|")
            now = float(wall), float(processor)
            spent[point] = now[0] - last[0], now[1] - last[1]
            last = now
    return spent, closing_block(done.stdout)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--watched"]:
        return watched(argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--compile", nargs="+", default=["false", "true"], choices=["false", "true"])
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value")
    parser.add_argument("--json", help="also write the figures here")
    args = parser.parse_args(argv)
    runs = {}
    for kind in args.compile:
        runs[kind], _ = measure(["--preset", args.preset, f"train.compile={kind}", *args.set])
    print(" " * 24 + "".join(f"{'compile=' + kind:>24}" for kind in runs))
    print(f"{'until the end of':<24}" + f"{'seconds':>12}{'processor':>12}" * len(runs))
    for point in POINTS:
        print(f"{point:<24}" + "".join(f"{run[point][0]:>12.2f}{run[point][1]:>12.2f}" for run in runs.values()))
    print(f"{'all before first step':<24}", end="")
    for run in runs.values():
        before = [run[point] for point in POINTS[:4]]
        print(f"{sum(wall for wall, _ in before):>12.2f}{sum(processor for _, processor in before):>12.2f}", end="")
    print()
    if args.json:
        write_json(args.json, {"preset": args.preset, "compile": runs})


if __name__ == "__main__":
    sys.exit(main())
