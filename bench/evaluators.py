"""eval_blimp.py beside the evaluators that others use, on the same exported checkpoint: decisions, time, memory.

    git clone https://github.com/babylm/evaluation-pipeline-2025 /tmp/babylm                    # with its requirements in some environment
    python bench/evaluators.py out/llama-26m/ckpt.pt --babylm /tmp/babylm --python /tmp/env/bin/python
    python bench/evaluators.py out/llama-26m/ckpt.pt --lm-eval --python /tmp/env/bin/python     # pip install 'lm_eval[hf]' there

Each round runs every program once, one after the other, each in a process of its own: wall time, processor time and peak
memory are the process's, start-up included. All run in float32 on the CPU with the same number of threads.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lab import commands
from lab.settings import UserError  # noqa: E402

LM_EVAL = """
import json, sys
from lm_eval import simple_evaluate
model, data, out, uids = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
tasks = [{"task": uid, "dataset_path": "json", "dataset_kwargs": {"data_files": {"train": f"{data}/{uid}.jsonl"}}, "validation_split": "train", "output_type": "multiple_choice",
          "doc_to_text": "", "doc_to_target": 0, "doc_to_choice": "{{[sentence_good, sentence_bad]}}", "num_fewshot": 0, "metric_list": [{"metric": "acc"}]} for uid in uids]
r = simple_evaluate(model="hf", model_args=f"pretrained={model},dtype=float32", tasks=tasks, batch_size=64, device="cpu", bootstrap_iters=0)
json.dump({uid: [s["doc"]["sentence_good" if s["acc"] else "sentence_bad"] for s in sorted(r["samples"][uid], key=lambda s: s["doc_id"])] for uid in uids}, open(out, "w"))
"""


def run(command, threads, cwd=None):
    """(wall seconds, processor seconds, peak MB) of a command; UserError with the end of its output if it fails."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen([str(c) for c in command], cwd=cwd, env=env, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            log.seek(0)
            raise UserError(f"{' '.join(map(str, command[:3]))} failed:\n{log.read().decode(errors='replace')[-2000:]}")
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def chosen(path):
    """{(paradigm, index): sentence} of a predictions file, ours, BabyLM's or the one LM_EVAL writes."""
    with open(path) as f:
        tree = json.load(f)
    return {(uid, i): p if isinstance(p, str) else p["pred"] for uid, rows in tree.items() for i, p in enumerate(rows if isinstance(rows, list) else rows["predictions"])}


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
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with tempfile.TemporaryDirectory() as tmp:
        files = sorted(name for name in os.listdir(args.data) if name.endswith(".jsonl"))
        files = [files[i * len(files) // args.paradigms] for i in range(min(args.paradigms, len(files)))]
        os.mkdir(f"{tmp}/blimp")
        for name in files:
            with open(os.path.join(args.data, name)) as f, open(f"{tmp}/blimp/{name}", "w") as g:
                g.writelines(line for line, _ in zip(f, range(args.pairs)))
        run([sys.executable, f"{here}/export.py", os.path.abspath(args.checkpoint), f"{tmp}/model"], args.threads)  # apart: its memory would count as its children's

        ours = [sys.executable, f"{here}/eval_blimp.py", os.path.abspath(args.checkpoint), "--data", f"{tmp}/blimp", "--device", "cpu", "--allow-incomplete"]
        programs = {}
        if args.babylm:
            babylm = [args.python, "-m", "evaluation_pipeline.sentence_zero_shot.run", "--backend", "causal", "--task", "blimp", "--save_predictions"]
            programs["ours, --compat babylm"] = ours + ["--compat", "babylm", "--predictions", f"{tmp}/ours-babylm.json"], None, f"{tmp}/ours-babylm.json"
            programs["BabyLM 2025"] = (babylm + ["--model_path_or_name", f"{tmp}/model", "--data_path", f"{tmp}/blimp", "--output_dir", f"{tmp}/results"], args.babylm,
                                       f"{tmp}/results/model/main/zero_shot/causal/blimp/blimp/predictions.json")
        if args.lm_eval:
            programs["ours, --compat lm-eval"] = ours + ["--compat", "lm-eval", "--predictions", f"{tmp}/ours-lm.json"], None, f"{tmp}/ours-lm.json"
            programs["lm-eval"] = [args.python, "-c", LM_EVAL, f"{tmp}/model", f"{tmp}/blimp", f"{tmp}/lm.json", *(name[:-6] for name in files)], None, f"{tmp}/lm.json"
        if not programs:
            raise UserError("nothing to compare with: give --babylm DIR or --lm-eval")
        used = {name: [] for name in programs}
        for _ in range(args.rounds):
            for name, (command, cwd, _out) in programs.items():
                used[name].append(run(command, args.threads, cwd))
                print(f"{name:<24}{used[name][-1][0]:9.1f} s wall {used[name][-1][1]:9.1f} s of processors {used[name][-1][2]:9.0f} MB", flush=True)

        names = list(programs)
        for mine, theirs in zip(names[::2], names[1::2]):
            a, b = (chosen(programs[name][2]) for name in (mine, theirs))
            if a.keys() != b.keys():
                raise UserError(f"{mine} and {theirs} scored different pairs")
            differ = [key for key in a if a[key] != b[key]]
            ratios = [[y / x for x, y in zip(m, t)] for m, t in zip(used[mine], used[theirs])]
            key = theirs.lower().replace(" ", "_").replace("-", "_")
            print(f"{key}_same_choices: {len(a) - len(differ)} of {len(a)}")
            print(f"{key}_differ: {' '.join(f'{uid}:{i}' for uid, i in differ[:20]) or 'none'}")
            for what, column in (("wall_time", 0), ("processor_time", 1), ("peak_memory", 2)):
                values = [r[column] for r in ratios]
                print(f"{key}_{what}_ratio: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}, {len(values)} rounds)")


if __name__ == "__main__":
    commands.run(main)
