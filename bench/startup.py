"""From the command to the first training step: where the time goes, by the clock and in seconds of the processor.

    python bench/startup.py                                             # preset quick, after `python prepare.py --preset quick`; compile off and on, a minute
    python bench/startup.py --preset sllama --compile false

Runs train.py with two steps in a process of its own, with the clock read at six points, and `python -X importtime` for the imports.
Other programs on the machine lengthen the first number and hardly the second, which does not count compilers and other children.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
POINTS = ["python", "imports", "model, data", "first validation", "first step", "second step"]


def watched(arguments):
    """train.main(arguments), with a line `clock: POINT|TIME|PROCESSOR TIME` at the end of each of POINTS."""
    def mark(point):
        print(f"clock: {point}|{time.time()}|{time.process_time()}", flush=True)
    mark("python")
    sys.path.insert(0, ROOT)
    import train
    mark("imports")
    build, step, points = train.Run.__init__, train.train_step, iter(POINTS[4:])

    def built(run, *rest):
        build(run, *rest)
        mark("model, data")

    def stepped(run):
        if run.step == 0:
            mark("first validation")
        out = step(run)
        mark(next(points))
        return out
    train.Run.__init__, train.train_step = built, stepped
    train.commands.run(lambda: train.main(arguments))


def measure(arguments):
    """{point: (seconds, processor's seconds) since the point before} of a run of two steps."""
    with tempfile.TemporaryDirectory() as out:
        began = time.time()
        command = [sys.executable, os.path.abspath(__file__), "--watched", *arguments, "train.max_steps=2", "train.epochs=null", f"train.out={out}"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit((done.stderr.strip().splitlines() or ["train.py failed"])[-1])
    rows = [line.removeprefix("clock: ").split("|") for line in done.stdout.splitlines() if line.startswith("clock: ")]
    reached = [(began, 0.0), *((float(wall), float(processor)) for _, wall, processor in rows)]
    return {point: (b[0] - a[0], b[1] - a[1]) for (point, _, _), a, b in zip(rows, reached, reached[1:])}


def imports(most=8):
    """[(seconds, module)]: the slowest imports of train.py that are not part of one listed before, everything below each included."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", "import train"], capture_output=True, text=True, cwd=ROOT)
    rows, found = [], []
    for line in done.stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[1].strip().isdigit():
            rows.append((int(parts[1]) / 1e6, parts[2].strip()))
    for seconds, name in sorted(rows, reverse=True):
        if not any(name == other or name.startswith(other + ".") for _, other in found) and name != "train":
            found.append((seconds, name))
    return found[:most]


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
    result = {"preset": args.preset, "imports": imports(), "compile": {c: measure(["--preset", args.preset, f"train.compile={c}", *args.set]) for c in args.compile}}
    print(f"{'':<24}" + "".join(f"{f'compile={c}':>24}" for c in args.compile))
    print(f"{'until the end of':<24}" + f"{'seconds':>12}{'processor':>12}" * len(args.compile))
    before = {c: [sum(result["compile"][c][p][k] for p in POINTS[:4]) for k in (0, 1)] for c in args.compile}
    for point in POINTS:
        print(f"{point:<24}" + "".join(f"{wall:>12.2f}{processor:>12.2f}" for wall, processor in (result["compile"][c][point] for c in args.compile)))
    print(f"{'all before first step':<24}" + "".join(f"{wall:>12.2f}{processor:>12.2f}" for wall, processor in before.values()))
    print("\nslowest imports, with what they import; slower for being watched")
    for seconds, name in result["imports"]:
        print(f"{name:<24}{seconds:>12.2f}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    sys.exit(main())
