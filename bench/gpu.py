"""What bench/gpu.sh runs: tests on a GPU, three recipes with BLiMP, compiling, precisions, memory, attention, speed.

Environment: DATA (folder with babylm-2mb, babylm-10mb and babylm-10m as prepare.py leaves them; any that is missing is
replaced by Pocket English and marked as a stand-in), BLIMP (its folder), DEVICE (cuda, cpu), QUICK=1 (tiny models, a
few steps), STAGES (names, to run only those), SECONDS_ALLOWED (default 520). Each command runs in a process of its own
and under a time limit; one that fails or runs out of time is recorded, and the next one starts. Everything goes into
one JSON file, written anew after every command, so that nothing is lost, whatever ends the script.
"""

import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time

from bench.common import ENVIRONMENT, ROOT, closing_block, module, script
from lab.files import atomic_write

DEVICE, QUICK = os.environ.get("DEVICE", "cuda"), os.environ.get("QUICK") == "1"
BEGAN = time.time()
SLOWER = float(os.environ.get("SECONDS_ALLOWED", 520)) / 520  # every limit below is meant for 520 seconds

CORPORA = {"sllama": "babylm-10m", "llama-26m": "babylm-2mb", "llama-66m": "babylm-10mb"}
TINY, LARGE = [], {}  # settings of every run, and by preset
if QUICK:
    TINY = """model.hidden_size=32 model.num_hidden_layers=2 model.num_attention_heads=2
        model.intermediate_size=48 model.max_position_embeddings=64 tokenizer.vocab_size=600
        train.batch_size=4 train.gradient_accumulation_steps=1""".split()
else:  # the card's 16 x 4 windows with checkpointing are for small GPUs; these are the same steps
    ONE_PASS = "train.gradient_accumulation_steps=1"
    LARGE["sllama"] = ["train.batch_size=256", ONE_PASS]
    LARGE["llama-26m"] = ["train.batch_size=64", ONE_PASS, "train.gradient_checkpointing=false"]
    LARGE["llama-66m"] = LARGE["llama-26m"]


def call(command, limit, until, cwd, environment=()):
    """Runs a command: {command, status, seconds, the end of its output and, if it failed, of its errors}.

    It is stopped after `limit` seconds, or when the whole script has run for `until`, both of 520 allowed.
    """
    limit = min(limit * SLOWER, until * SLOWER - (time.time() - BEGAN))
    record = {"command": " ".join(command).replace(sys.executable, "python").replace(ROOT + os.sep, "")}
    if limit < 5:
        return {**record, "status": "no time left"}
    start = time.time()
    try:
        env = {**ENVIRONMENT, **dict(environment)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=limit, env=env)
        record |= {"status": done.returncode, "tail": done.stdout[-3000:]}
        if done.returncode:
            record["errors"] = done.stderr[-1500:]
    except OSError as e:
        record["status"] = f"cannot be run: {e.strerror}"
    except subprocess.TimeoutExpired as e:
        record |= {"status": f"stopped after {limit:.0f} s", "tail": (e.stdout or b"").decode(errors="replace")[-3000:]}
    return {**record, "seconds": round(time.time() - start, 2)}


def block(record):
    """The `key: value` lines at the end of a command's output, numbers as numbers."""
    found = closing_block(record.get("tail", ""))
    for key, value in found.items():
        with contextlib.suppress(ValueError):
            found[key] = float(value)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Stages: functions of (state, run, put); run(command, limit, environment) -> record, put(name, record or value)


def environment(state, run, put):
    if DEVICE == "cuda":
        put("gpu", run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], 20))
    versions = "import platform, torch; print(platform.python_version(), torch.__version__, torch.version.cuda)"
    put("python, torch, CUDA", run([sys.executable, "-c", versions], 60))
    put("commit", run(["git", "-C", ROOT, "describe", "--always", "--dirty"], 10))


def data(state, run, put):
    """Links what DATA has into the working folder; Pocket English stands in for the rest."""
    folder, missing = os.environ.get("DATA", os.path.join(ROOT, "data")), []
    os.makedirs("data")
    for name in CORPORA.values():
        if os.path.exists(os.path.join(folder, name, "meta.json")) and not QUICK:
            os.symlink(os.path.abspath(os.path.join(folder, name)), os.path.join("data", name))
        else:
            missing.append(name)
    small = ["data.pocket_words=30000", "data.validation_kb=4", "tokenizer.vocab_size=600"] if QUICK else []
    put("pocket", run(script("prepare.py", "--preset", "quick", *small), 120))
    for name in missing:
        os.symlink("pocket", os.path.join("data", name))
    put("stand_in", {name: "Pocket English" for name in missing})
    blimp = os.environ.get("BLIMP")
    put("pairs", os.path.abspath(blimp) if blimp else "Pocket English's own, BLIMP was not given")


def tests(state, run, put):
    gpu_tests = os.path.join(ROOT, "tests", "test_gpu.py")
    put("pytest", run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", gpu_tests], 100))


def recipe(preset, limit, state, run, put):
    """A preset's whole recipe, its batch in fewer and larger pieces where the GPU has room; then its BLiMP score."""
    few = ["train.max_steps=4", "train.epochs=null", "train.eval_windows=4", "train.warmup=0"] if QUICK else []
    settings = [*few, *TINY, *LARGE.get(preset, []), f"train.device={DEVICE}", f"train.out=out/{preset}"]
    record = run(script("train.py", "--preset", preset, *settings), limit)
    rows = []
    with contextlib.suppress(OSError), open(f"out/{preset}/losses.csv", encoding="utf-8") as f:
        rows = f.read().splitlines()
    put(preset, {**record, "closing_block": block(record), "losses": rows[:1] + rows[-5:]})
    pairs = state["data"]["pairs"]
    where = ["--data", pairs] if os.path.isdir(pairs) else []
    few = ["--max-pairs-per-paradigm", "5", "--allow-incomplete"] if QUICK else []
    record = run(script("eval_blimp.py", f"out/{preset}/ckpt.pt", *where, *few, "--device", DEVICE), 60)
    put(f"{preset}, scored", {**record, "closing_block": block(record)})


def sllama(state, run, put):
    recipe("sllama", 150, state, run, put)


def step(preset, run, *options, **environment):
    """Tokens a second, peak memory, and the seconds of the first step, of training steps on random tokens."""
    settings = ["--preset", preset, *TINY, *LARGE.get(preset, []), f"train.device={DEVICE}", *options]
    record = run(module("bench.speed.step", "--steps", "2" if QUICK else "20", *settings), 60, environment)
    return block(record) if record["status"] == 0 else record


def compiling(state, run, put):
    """With and without torch.compile; the time that compiling takes is in the first step."""
    for setting in ("false",) if QUICK else ("false", "true"):
        put(f"sllama, train.compile={setting}", step("sllama", run, f"train.compile={setting}"))


def precisions(state, run, put):
    """Losses of 20 steps by precision and switches, resume, and one rank under torchrun.

    In one process, as most of the time would be start-up.
    """
    record = run(module("bench.gpu", "--correctness"), 120)
    lines = [line for line in record.get("tail", "").splitlines() if line.startswith("{")]
    put("losses", json.loads(lines[-1]) if lines else record)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    put("torchrun", run([*torchrun, os.path.join(ROOT, "train.py"), *SHORT, "train.out=out/torchrun"], 60))


def cards(state, run, put):
    recipe("llama-26m", 45, state, run, put)
    recipe("llama-66m", 90, state, run, put)


def memory(state, run, put):
    """Peak memory with and without gradient checkpointing, and with all logits at once."""
    for options in ([], ["train.gradient_checkpointing=true"], ["--loss", "plain"]):
        put(" ".join(["llama-66m", *options]), step("llama-66m", run, "train.compile=false", *options))


def attention(state, run, put):
    """cuDNN's kernel, PyTorch's default on recent cards, and without it."""
    for deprioritized in ("0", "1"):
        found = step("sllama", run, "train.compile=false", TORCH_CUDNN_SDPA_DEPRIORITIZED=deprioritized)
        put(f"sllama, TORCH_CUDNN_SDPA_DEPRIORITIZED={deprioritized}", found)


def transformers(state, run, put):
    """If time is left: tokens a second beside transformers, both compiled."""
    if QUICK:
        return
    settings = ["--preset", "llama-66m", "--device", DEVICE, "--compile", "both", "--batch", "16", "--steps", "20"]
    put("llama-66m", run(module("bench.speed.throughput", *settings), 90))


# seconds of the whole script after which a stage starts nothing more; time that one leaves goes to the next
ORDER = (environment, data, tests, sllama, compiling, precisions, cards, memory, attention, transformers)
STAGES = dict(zip(ORDER, (40, 60, 140, 270, 310, 380, 460, 490, 510, 520)))

SHORT = ["--preset", "quick", *TINY, f"train.device={DEVICE}", "train.compile=false", "train.dtype=float32"]
SHORT += ["train.max_steps=20", "train.decay_steps=20", "train.warmup=2", "train.gradient_accumulation_steps=2"]
SHORT += ["train.eval_every=10", "train.save_every=10", "train.eval_windows=16", "train.sample_tokens=0"]
KINDS = {  # settings of a run, and the largest difference from the float32 losses that still agrees
    "float32 again": ([], 1e-4),
    "bfloat16": (["train.dtype=bfloat16"], 0.05),
    "checkpointing": (["train.gradient_checkpointing=true"], 1e-4),
}
CUDA_KINDS = {
    "float16": (["train.dtype=float16"], 0.05),
    "compiled": (["train.compile=true"], 1e-3),
    "compiled, bfloat16": (["train.compile=true", "train.dtype=bfloat16"], 0.05),
}


def short_run(name, *options):
    """The training losses of a short run into out/NAME."""
    import train

    out = f"out/{name.replace(' ', '-')}"
    with contextlib.redirect_stdout(sys.stderr):
        train.main([*SHORT, *options, f"train.out={out}"])
    with open(f"{out}/losses.csv", encoding="utf-8") as f:
        return [float(row["train_loss"]) for row in csv.DictReader(f) if row["train_loss"]]


def compare_runs():
    """Prints {kind: {largest difference from the float32 losses, tolerance, agrees}}, or why that kind failed."""
    found = {}

    def compare(kind, tolerance, losses):
        try:
            gap = max(abs(a - b) for a, b in zip(*losses(), strict=True))
            found[kind] = {"largest_difference": gap, "tolerance": tolerance, "agrees": gap <= tolerance}
        except BaseException as e:  # one that fails must not hide the others
            found[kind] = {"failed": f"{type(e).__name__}: {e}"[:500]}
        print(json.dumps(found), flush=True)

    def stopped_and_continued():
        strict = "train.deterministic=true"
        whole = short_run("whole", strict)
        short_run("parts", strict, "train.max_steps=10")
        return whole, short_run("parts", strict)

    base = short_run("float32")
    kinds = KINDS | CUDA_KINDS if DEVICE == "cuda" else KINDS
    for kind, (options, tolerance) in kinds.items():
        compare(kind, tolerance, lambda kind=kind, options=options: (base, short_run(kind, *options)))
    compare("stopped and continued", 0, stopped_and_continued)


def main():
    target = os.path.abspath(sys.argv[1])
    result = {"device": DEVICE, "quick": QUICK, "stages": {}}
    wanted = os.environ.get("STAGES", "").split() or [stage.__name__ for stage in STAGES]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for stage, until in STAGES.items():
            name = stage.__name__
            if name not in wanted and stage not in (environment, data):
                continue
            records = result["stages"][name] = {}

            def run(command, limit, environment=(), until=until):
                return call(command, limit, until, folder, environment)

            def put(key, value, records=records, name=name):
                records[key] = value
                status = value.get("status", "") if isinstance(value, dict) else value
                print(f"{time.time() - BEGAN:6.0f} s  {name}: {key} {status}", flush=True)
                result["seconds"] = round(time.time() - BEGAN, 1)
                atomic_write(target, json.dumps(result, indent=1) + "\n")

            try:
                stage(result["stages"], run, put)
            except Exception as e:  # a mistake in one stage must not end the script
                put("failed", f"{type(e).__name__}: {e}")
        os.chdir(ROOT)
    print(f"{target}: {result['seconds']:.0f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--correctness"]:
        compare_runs()
    else:
        main()
