"""What bench/gpu.sh runs: the tests that need a GPU, correctness, speed and memory, the three recipes and their BLiMP scores, into one JSON file.

Environment: DATA (folder with babylm-2mb, babylm-10mb and babylm-10m as prepare.py leaves them; any that is missing is replaced by Pocket
English and marked as stand-in), BLIMP (folder or zip), DEVICE (cuda, cpu), QUICK=1 (tiny models, a few steps), STAGES (names, to run only
those), SECONDS_ALLOWED (default 520). Each command runs in a process of its own and under a time limit; one that fails or runs out of
time is recorded and the next one starts. The file is written anew after every command, so that whatever ends the script loses nothing.
"""
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile

BENCH = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(BENCH)
DEVICE, QUICK = os.environ.get("DEVICE", "cuda"), os.environ.get("QUICK") == "1"
BEGAN, ALLOWED = time.time(), float(os.environ.get("SECONDS_ALLOWED", 520))
SLOWER = ALLOWED / 520                                                  # every limit below is meant for 520 seconds in all
CORPORA = {"sllama": "babylm-10m", "llama-26m": "babylm-2mb", "llama-66m": "babylm-10mb"}
TINY = ["model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.intermediate_size=48", "model.max_position_embeddings=64",
        "tokenizer.vocab_size=600", "train.batch_size=4", "train.gradient_accumulation_steps=1"] if QUICK else []
# The card's 16 x 4 windows with checkpointing are for small GPUs; 64 x 1 without are the same steps, and what a large one should run.
LARGE = {} if QUICK else {preset: ["train.batch_size=64", "train.gradient_accumulation_steps=1", "train.gradient_checkpointing=false"] for preset in ("llama-26m", "llama-66m")}
LARGE |= {} if QUICK else {"sllama": ["train.batch_size=256", "train.gradient_accumulation_steps=1"]}


def call(command, limit, until, cwd, env=None):
    """{command, status, seconds, and the end of the output}; limit, and until of the whole script, in seconds of 520 allowed."""
    limit = min(limit * SLOWER, until * SLOWER - (time.time() - BEGAN))
    record = {"command": " ".join(os.path.relpath(c, ROOT) if c.startswith(ROOT) else os.path.basename(c) if os.path.isabs(c) else c for c in command)}
    if limit < 5:
        return {**record, "status": "no time left"}
    start = time.time()
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=limit, env={**os.environ, **(env or {})})
        record |= {"status": done.returncode, "tail": done.stdout[-3000:], **({"errors": done.stderr[-1500:]} if done.returncode else {})}
    except OSError as e:
        record |= {"status": f"cannot be run: {e.strerror}"}
    except subprocess.TimeoutExpired as e:
        record |= {"status": f"stopped after {limit:.0f} s", "tail": (e.stdout or b"").decode(errors="replace")[-3000:]}
    return {**record, "seconds": round(time.time() - start, 2)}


def block(record):
    """The `key: value` lines at the end of a command's output, numbers as numbers."""
    out = {}
    for line in record.get("tail", "").splitlines()[-30:]:
        key, colon, value = line.partition(": ")
        if colon and key.isidentifier():
            try:
                out[key] = float(value)
            except ValueError:
                out[key] = value
    return out


def python(script, *args):
    return [sys.executable, os.path.join(ROOT, script), *args]


# ---------------------------------------------------------------------------------------------------------------------
# Stages: functions of (state, run, put); run(command, limit) -> record, put(name, record or value)


def environment(state, run, put):
    put("gpu", run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], 20) if DEVICE == "cuda" else "none")
    put("torch", run([sys.executable, "-c", "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available() and torch.cuda.get_device_name())"], 60))
    put("python", platform.python_version())
    put("commit", run(["git", "-C", ROOT, "describe", "--always", "--dirty"], 10))


def data(state, run, put):
    """Links what DATA has into the working folder, and makes Pocket English for the rest."""
    folder, missing = os.environ.get("DATA", os.path.join(ROOT, "data")), []
    os.makedirs("data")
    for name in CORPORA.values():
        if os.path.exists(os.path.join(folder, name, "meta.json")) and not QUICK:
            os.symlink(os.path.abspath(os.path.join(folder, name)), os.path.join("data", name))
        else:
            missing.append(name)
    words, kb = ("30000", "4") if QUICK else ("1000000", "40")
    small = ["tokenizer.vocab_size=600"] if QUICK else []
    put("pocket", run(python("prepare.py", "--preset", "quick", f"data.pocket_words={words}", f"data.validation_kb={kb}", *small), 120))
    for name in missing:
        os.symlink("pocket", os.path.join("data", name))
    put("stand_in", {name: "Pocket English" for name in missing})
    blimp = os.environ.get("BLIMP")
    if blimp and blimp.endswith(".zip") and os.path.exists(blimp):
        with zipfile.ZipFile(blimp) as z:
            z.extractall("blimp")
    elif blimp and os.path.isdir(blimp):
        os.symlink(os.path.abspath(blimp), "blimp")
    found = [here for here, _, files in os.walk("blimp", followlinks=True) if any(f.endswith(".jsonl") for f in files)] if os.path.exists("blimp") else []
    put("pairs", found[0] if found else "Pocket English's own, BLIMP was not given")


def tests(state, run, put):
    put("pytest", run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", os.path.join(ROOT, "tests", "test_gpu.py")], 130))


def correctness(state, run, put):
    """Losses of 20 steps by precision and switches, resume, and one rank under torchrun: in one process, as most of the time would be start-up."""
    record = run([sys.executable, os.path.abspath(__file__), "--correctness"], 150)
    lines = [line for line in record.get("tail", "").splitlines() if line.startswith("{")]
    put("losses", json.loads(lines[-1]) if lines else record)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    put("torchrun", run([*torchrun, os.path.join(ROOT, "train.py"), *SHORT, "train.out=out/torchrun"], 60))


def throughput(state, run, put):
    """Tokens a second, peak memory, and the seconds that the first step (compiling) takes, on random tokens with the full vocabulary."""
    sys.path.insert(0, BENCH)
    for preset in ("llama-66m", "llama-26m", "sllama"):
        steps = ["train.max_steps=6" if QUICK else "train.max_steps=40", "train.epochs=null", "train.eval_windows=1", "train.sample_tokens=0",
                 "train.eval_every=1000", "train.save_every=1000"]
        compiled = "train.compile=false" if QUICK else "train.compile=true"
        record = run(python("bench/memory.py", "--cell", "chunked", "--preset", preset, *steps, *TINY, *LARGE.get(preset, []), compiled, f"train.device={DEVICE}",
                            f"train.out=out/speed-{preset}"), 100)
        numbers = block(record)
        if "tokens_per_second" not in numbers:
            put(preset, record)
            continue
        flops = run([sys.executable, "-c", "import sys, config, roofline, torch; c = config.load_config(sys.argv[1], sys.argv[2:]); "
                     "print('model_flops:', roofline.model_flops(c.model)); print('peak:', torch.cuda.is_available() and roofline.peak(torch.cuda.get_device_name()) or 0)",
                     preset, *TINY], 40, {"PYTHONPATH": ROOT + os.pathsep + BENCH})
        cost = block(flops)
        mfu = numbers["tokens_per_second"] * cost["model_flops"] / cost["peak"] if cost.get("peak") else None
        kept = {k: numbers.get(k) for k in ("tokens_per_second", "peak_memory_mb", "first_step_seconds")}
        put(preset, {**kept, "mfu": mfu, "settings": LARGE.get(preset), "seconds": record["seconds"]})


def recipes(state, run, put):
    """Each preset's own recipe, whole; the batch in fewer and larger pieces where the GPU has room."""
    for preset, limit in (("sllama", 170), ("llama-26m", 60), ("llama-66m", 110)):
        steps = ["train.max_steps=4", "train.epochs=null", "train.eval_windows=4", "train.warmup=0"] if QUICK else []
        record = run(python("train.py", "--preset", preset, *steps, *TINY, *LARGE.get(preset, []), f"train.device={DEVICE}", f"train.out=out/{preset}"), limit)
        try:
            with open(f"out/{preset}/losses.csv", encoding="utf-8") as f:
                rows = f.read().splitlines()
        except OSError:
            rows = []
        put(preset, {**record, "closing_block": block(record), "losses": rows[:1] + rows[-5:]})


def evaluation(state, run, put):
    """Seconds of the whole command, start-up included, and its accuracy."""
    pairs = state["data"]["pairs"]
    for preset in ("sllama", "llama-26m", "llama-66m"):
        where = ["--data", pairs] if os.path.isdir(pairs) else []
        few = ["--max-pairs-per-paradigm", "5", "--allow-incomplete"] if QUICK else []
        record = run(python("eval_blimp.py", f"out/{preset}/ckpt.pt", *where, *few, "--device", DEVICE), 60)
        put(preset, {**record, "closing_block": block(record)})


def more(state, run, put):
    """If time is left: beside transformers, and part by part."""
    if not QUICK:
        put("transformers", run(python("bench/throughput.py", "--preset", "llama-66m", "--batch", "16", "--steps", "20", "--device", DEVICE, "--compile"), 90))
        put("roofline", run(python("bench/roofline.py", "--preset", "llama-66m", "--batch", "64", "--device", DEVICE, "--compile"), 90))


# seconds of the whole script after which a stage starts nothing more; what one leaves goes to the next
STAGES = {environment: 60, data: 90, tests: 180, correctness: 270, throughput: 390, recipes: 490, evaluation: 520, more: 520}

SHORT = ["--preset", "quick", "train.max_steps=20", "train.decay_steps=20", "train.eval_every=10", "train.save_every=10", "train.eval_windows=16", "train.sample_tokens=0",
         "train.warmup=2", "train.gradient_accumulation_steps=2", f"train.device={DEVICE}", "train.compile=false", "train.dtype=float32", *TINY]
CLOSE = {"float32 again": 1e-4, "bfloat16": 0.05, "float16": 0.05, "checkpointing": 1e-4, "compiled": 1e-3, "compiled, bfloat16": 0.05, "stopped and continued": 0}


def compare_runs():
    """Prints {kind: {largest difference from the float32 losses, tolerance, agrees}}; each kind's failure is its own."""
    sys.path.insert(0, ROOT)
    import contextlib
    import csv

    import train

    def losses(name, *options):
        with contextlib.redirect_stdout(sys.stderr):
            train.main([*SHORT, *options, f"train.out=out/{name.replace(' ', '-')}"])
        with open(f"out/{name.replace(' ', '-')}/losses.csv", encoding="utf-8") as f:
            return [float(row["train_loss"]) for row in csv.DictReader(f) if row["train_loss"]]

    def continued(name):
        base[:] = losses("strict", "train.deterministic=true")          # the only kind that is compared with a run of its own
        losses(name, "train.deterministic=true", "train.max_steps=10")
        return losses(name, "train.deterministic=true")
    runs = {"float32 again": lambda n: losses(n), "bfloat16": lambda n: losses(n, "train.dtype=bfloat16"),
            "checkpointing": lambda n: losses(n, "train.gradient_checkpointing=true")}
    if DEVICE == "cuda":
        runs |= {"float16": lambda n: losses(n, "train.dtype=float16"), "compiled": lambda n: losses(n, "train.compile=true"),
                 "compiled, bfloat16": lambda n: losses(n, "train.compile=true", "train.dtype=bfloat16")}
    runs["stopped and continued"] = continued
    base, out = losses("float32"), {}
    for kind, function in runs.items():
        try:
            gap = max(abs(a - b) for a, b in zip(base, function(kind), strict=True))
            out[kind] = {"largest_difference": gap, "tolerance": CLOSE[kind], "agrees": gap <= CLOSE[kind]}
        except BaseException as e:                                      # one that fails must not hide the others
            out[kind] = {"failed": f"{type(e).__name__}: {e}"[:500]}
        print(json.dumps(out), flush=True)


def main():
    target = os.path.abspath(sys.argv[1])
    result = {"device": DEVICE, "quick": QUICK, "stages": {}}

    def write():
        result["seconds"] = round(time.time() - BEGAN, 1)
        with open(target + ".tmp", "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)
        os.replace(target + ".tmp", target)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for stage, until in STAGES.items():
            if stage.__name__ not in os.environ.get("STAGES", stage.__name__).split() and stage not in (environment, data):
                continue
            mine = result["stages"].setdefault(stage.__name__, {})

            def run(command, limit, env=None, until=until):
                return call(command, limit, until, folder, env)

            def put(name, value, mine=mine, stage=stage):
                mine[name] = value
                status = value.get("status", "") if isinstance(value, dict) else value
                print(f"{time.time() - BEGAN:6.0f} s  {stage.__name__}: {name} {status}", flush=True)
                write()
            try:
                stage(result["stages"], run, put)
            except Exception as e:                                      # a mistake in one stage must not end the script
                put("failed", f"{type(e).__name__}: {e}")
        write()
        os.chdir(ROOT)
    print(f"{target}: {result['seconds']:.0f} s")


if __name__ == "__main__":
    compare_runs() if sys.argv[1:2] == ["--correctness"] else main()
