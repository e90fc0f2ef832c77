"""eval_blimp.py beside another evaluator, on the same model: decisions, time, memory.

    git clone https://github.com/babylm/evaluation-pipeline-2025 /tmp/babylm
    python -m bench.speed.evaluators out/llama-26m/ckpt.pt --babylm /tmp/babylm --python /tmp/env/bin/python
    python -m bench.speed.evaluators out/llama-26m/ckpt.pt --python /tmp/env/bin/python            # lm-eval
    python -m bench.speed.evaluators bert/ --masked --babylm /tmp/babylm --python /tmp/env/bin/python

/tmp/env is an environment with the pipeline's requirements, or with lm_eval[hf]. A checkpoint is exported for the other
one; with --hf ours scores the exported folder too, by transformers, instead of the checkpoint. Each runs in a process
of its own, in float32 on the CPU with the same number of threads: wall time, processor time and peak memory are the
process's, start-up included.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time

from bench.common import ENVIRONMENT, script, show
from lab import cli
from lab.files import UserError

LM_EVAL = """
import json, sys
from lm_eval import simple_evaluate

model, data, out, *uids = sys.argv[1:]
common = {"dataset_path": "json", "validation_split": "train", "output_type": "multiple_choice", "doc_to_text": "",
          "doc_to_target": 0, "doc_to_choice": "{{[sentence_good, sentence_bad]}}", "num_fewshot": 0,
          "metric_list": [{"metric": "acc"}]}
tasks = [{"task": uid, "dataset_kwargs": {"data_files": {"train": f"{data}/{uid}.jsonl"}}, **common} for uid in uids]
found = simple_evaluate(model="hf", model_args=f"pretrained={model},dtype=float32", tasks=tasks, batch_size=64,
                        device="cpu", bootstrap_iters=0)["samples"]
chosen = {uid: sorted(found[uid], key=lambda sample: sample["doc_id"]) for uid in uids}
json.dump({uid: [s["doc"]["sentence_good" if s["acc"] else "sentence_bad"] for s in samples]
           for uid, samples in chosen.items()}, open(out, "w"))
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(command, threads, cwd=None):
    """{what: figure} of a command's process; UserError with the end of its output if it fails."""
    env = {**ENVIRONMENT, **OFFLINE, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            log.seek(0)
            raise UserError(f"{' '.join(command[:3])} failed:\n{log.read().decode(errors='replace')[-2000:]}")
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024),
    }


def choices(path):
    """{(paradigm, index): sentence} of a predictions file: ours, BabyLM's or LM_EVAL's."""
    with open(path, encoding="utf-8") as f:
        tree = json.load(f)
    found = {}
    for uid, rows in tree.items():
        for i, row in enumerate(rows if isinstance(rows, list) else rows["predictions"]):
            found[uid, i] = row if isinstance(row, str) else row["pred"]
    return found


def some_pairs(source, target, pairs):
    """Copies `pairs` lines of each paradigm's file, drawn by a fixed seed; returns the paradigms' names."""
    os.mkdir(target)
    names = sorted(name for name in os.listdir(source) if name.endswith(".jsonl"))
    for name in names:
        with open(os.path.join(source, name)) as f:
            lines = f.readlines()
        kept = sorted(random.Random(name).sample(range(len(lines)), min(pairs, len(lines))))
        with open(os.path.join(target, name), "w") as f:
            f.writelines(lines[i] for i in kept)
    return [name.removesuffix(".jsonl") for name in names]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model", help="a checkpoint, or a Hugging Face folder")
    p.add_argument("--data", default="data/blimp")
    p.add_argument("--babylm", metavar="DIR", help="a checkout of babylm/evaluation-pipeline-2025; else lm-eval")
    p.add_argument("--python", default=sys.executable, help="the Python that has the other's requirements")
    p.add_argument("--hf", action="store_true", help="ours scores the exported folder, not the checkpoint")
    p.add_argument("--masked", action="store_true", help="the folder holds a masked model; only beside --babylm")
    p.add_argument("--pairs", type=int, default=1000, help="of each paradigm, drawn at random")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as tmp:
        folder, data, our_file = os.path.abspath(args.model), f"{tmp}/blimp", f"{tmp}/ours.json"
        uids = some_pairs(args.data, data, args.pairs)
        if not os.path.isdir(args.model):
            folder = f"{tmp}/model"
            run(script("export.py", args.model, folder), args.threads)
        rule = "babylm-2025" if args.babylm else "lm-eval"
        mine = folder if args.hf else args.model
        ours = script("eval_blimp.py", mine, "--data", data, "--device", "cpu", "--allow-incomplete")
        figures = run([*ours, "--compat", rule, "--predictions", our_file], args.threads)
        if args.babylm:
            backend = "mlm" if args.masked else "causal"
            task = f"--backend {backend} --task blimp --save_predictions".split()
            where = ["--model_path_or_name", folder, "--data_path", data, "--output_dir", f"{tmp}/results"]
            theirs = [args.python, "-m", "evaluation_pipeline.sentence_zero_shot.run", *task, *where]
            name = os.path.basename(folder)
            their_file = f"{tmp}/results/{name}/main/zero_shot/{backend}/blimp/blimp/predictions.json"
        else:
            their_file = f"{tmp}/theirs.json"
            theirs = [args.python, "-c", LM_EVAL, folder, data, their_file, *uids]
        figures |= {f"their_{what}": figure for what, figure in run(theirs, args.threads, args.babylm).items()}
        a, b = choices(our_file), choices(their_file)
    if a.keys() != b.keys():
        raise UserError("the two scored different pairs")
    differ = [f"{uid}:{i}" for uid, i in a if a[uid, i] != b[uid, i]]
    show({"compat": rule, **figures, "pairs": len(a), "other_choices": " ".join(differ) or "none"})


if __name__ == "__main__":
    cli.run(main)
