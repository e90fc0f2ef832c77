"""eval_blimp.py beside the evaluators that others use, on the same exported checkpoint: decisions, time, memory.

    git clone https://github.com/babylm/evaluation-pipeline-2025 /tmp/babylm
    python -m bench.speed.evaluators out/llama-26m/ckpt.pt --babylm /tmp/babylm --python /tmp/env/bin/python
    python -m bench.speed.evaluators out/llama-26m/ckpt.pt --lm-eval --python /tmp/env/bin/python

/tmp/env is an environment with the pipeline's requirements, or with lm_eval[hf]. Each round runs every program once,
one after the other, each in a process of its own: wall time, processor time and peak memory are the process's, start-up
included. All run in float32 on the CPU with the same number of threads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from bench.common import script
from lab import cli
from lab.files import UserError

LM_EVAL = """
import json, sys
from lm_eval import simple_evaluate

model, data, out, uids = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
tasks = [
    {
        "task": uid,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": f"{data}/{uid}.jsonl"}},
        "validation_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}],
    }
    for uid in uids
]
found = simple_evaluate(model="hf", model_args=f"pretrained={model},dtype=float32", tasks=tasks, batch_size=64,
                        device="cpu", bootstrap_iters=0)["samples"]
chosen = {}
for uid in uids:
    samples = sorted(found[uid], key=lambda sample: sample["doc_id"])
    chosen[uid] = [s["doc"]["sentence_good" if s["acc"] else "sentence_bad"] for s in samples]
json.dump(chosen, open(out, "w"))
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(command, threads, cwd=None):
    """(wall seconds, processor seconds, peak MB) of a command; UserError with the end of its output if it fails."""
    env = {**os.environ, **OFFLINE, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen([str(c) for c in command], cwd=cwd, env=env, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            log.seek(0)
            end = log.read().decode(errors="replace")[-2000:]
            raise UserError(f"{' '.join(map(str, command[:3]))} failed:\n{end}")
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def choices(path):
    """{(paradigm, index): sentence} of a predictions file: ours, BabyLM's or the one LM_EVAL writes."""
    with open(path) as f:
        tree = json.load(f)
    found = {}
    for uid, rows in tree.items():
        for i, row in enumerate(rows if isinstance(rows, list) else rows["predictions"]):
            found[uid, i] = row if isinstance(row, str) else row["pred"]
    return found


def some_pairs(source, target, paradigms, pairs):
    """Copies the first `pairs` lines of `paradigms` evenly spaced files; returns the names of those paradigms."""
    names = sorted(name for name in os.listdir(source) if name.endswith(".jsonl"))
    names = [names[i * len(names) // paradigms] for i in range(min(paradigms, len(names)))]
    os.mkdir(target)
    for name in names:
        with open(os.path.join(source, name)) as f, open(os.path.join(target, name), "w") as g:
            g.writelines(line for line, _ in zip(f, range(pairs)))
    return [name.removesuffix(".jsonl") for name in names]


def contestants(args, checkpoint, uids, tmp):
    """[(ours, theirs)], each (name, command, folder to run it in, its file of predictions)."""
    ours = [*script("eval_blimp.py", checkpoint), "--data", f"{tmp}/blimp", "--device", "cpu", "--allow-incomplete"]
    found = []
    if args.babylm:
        theirs = [
            args.python,
            "-m",
            "evaluation_pipeline.sentence_zero_shot.run",
            "--backend",
            "causal",
            "--task",
            "blimp",
            "--save_predictions",
            "--model_path_or_name",
            f"{tmp}/model",
            "--data_path",
            f"{tmp}/blimp",
            "--output_dir",
            f"{tmp}/results",
        ]
        predictions = f"{tmp}/results/model/main/zero_shot/causal/blimp/blimp/predictions.json"
        mine = f"{tmp}/ours-babylm.json"
        command = [*ours, "--compat", "babylm-2025", "--predictions", mine]
        found.append(
            (("ours, --compat babylm-2025", command, None, mine), ("BabyLM 2025", theirs, args.babylm, predictions))
        )
    if args.lm_eval:
        predictions, mine = f"{tmp}/lm.json", f"{tmp}/ours-lm.json"
        theirs = [args.python, "-c", LM_EVAL, f"{tmp}/model", f"{tmp}/blimp", predictions, *uids]
        found.append(
            (
                ("ours, --compat lm-eval", [*ours, "--compat", "lm-eval", "--predictions", mine], None, mine),
                ("lm-eval", theirs, None, predictions),
            )
        )
    if not found:
        raise UserError("nothing to compare with: give --babylm DIR or --lm-eval")
    return found


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("checkpoint")
    p.add_argument("--data", default="data/blimp")
    p.add_argument("--babylm", metavar="DIR", help="a checkout of babylm/evaluation-pipeline-2025")
    p.add_argument("--lm-eval", action="store_true")
    p.add_argument("--python", default=sys.executable, help="the Python that has the others' requirements")
    p.add_argument("--paradigms", type=int, default=67, help="so many of them, evenly spaced")
    p.add_argument("--pairs", type=int, default=1000, help="so many of each")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    args = p.parse_args(argv)
    checkpoint = os.path.abspath(args.checkpoint)
    with tempfile.TemporaryDirectory() as tmp:
        uids = some_pairs(args.data, f"{tmp}/blimp", args.paradigms, args.pairs)
        run(script("export.py", checkpoint, f"{tmp}/model"), args.threads)
        duels = contestants(args, checkpoint, uids, tmp)
        used = {name: [] for duel in duels for name, *_ in duel}
        for _ in range(args.rounds):
            for name, command, folder, _ in (program for duel in duels for program in duel):
                wall, processor, peak = run(command, args.threads, folder)
                used[name].append((wall, processor, peak))
                print(f"{name:<24}{wall:9.1f} s wall {processor:9.1f} s of processors {peak:9.0f} MB", flush=True)

        for (mine, _, _, our_file), (theirs, _, _, their_file) in duels:
            a, b = choices(our_file), choices(their_file)
            if a.keys() != b.keys():
                raise UserError(f"{mine} and {theirs} scored different pairs")
            differ = [f"{uid}:{i}" for uid, i in a if a[uid, i] != b[uid, i]]
            key = theirs.lower().replace(" ", "_").replace("-", "_")
            print(f"{key}_same_choices: {len(a) - len(differ)} of {len(a)}")
            print(f"{key}_differ: {' '.join(differ[:20]) or 'none'}")
            for column, what in enumerate(("wall_time", "processor_time", "peak_memory")):
                ratios = [their[column] / our[column] for our, their in zip(used[mine], used[theirs])]
                print(
                    f"{key}_{what}_ratio: {statistics.median(ratios):.2f} "
                    f"({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)"
                )


if __name__ == "__main__":
    cli.run(main)
