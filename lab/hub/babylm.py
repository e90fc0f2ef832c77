"""The BabyLM challenge of 2026: a run's checkpoints scored on its zero-shot tasks, and the submission checked.

    python -m lab.hub.babylm score out/mine my-babylm --data EVALUATION_DATA --out RESULTS
    python -m lab.hub.babylm check RESULTS/my-babylm/all_full_preds_and_fast_scores_causal.json

The challenge's pipeline (babylm-org/babylm-eval at 3d57ddc, folder strict/) is started anew for each of some 120 pairs
of checkpoint and task. `score` writes the same predictions.json files with lab/score/scoring.py: BLiMP, its
supplement, EWoK, entity tracking, COMPS and GlobalPIQA, in full for ckpt.pt, in their fast form for chck_1M.pt, ...
What is not there is named and skipped, what has been scored is not scored again. Reading times, age of acquisition and
fine-tuning are left to the pipeline. docs/babylm.md is the whole walk.
"""

import argparse
from dataclasses import dataclass
import functools
import hashlib
import json
import os
import pathlib
import time

from lab import checkpoint, cli
from lab.checkpoint import BABYLM_WORDS
from lab.files import UserError, atomic_write, file_sha256, read_json, read_text
from lab.report.tables import predictions
from lab.score import scoring
from lab.score.pairs import BLIMP, data_files, json_rows

import numpy as np
import yaml

# {folder of the data: its task}, as the pipeline calls them
PIQA = {"global_piqa_parallel": "global_piqa_parallel", "global_piqa_nonparallel": "global_piqa_nonparallel"}
FULL = {"blimp_filtered": "blimp", "supplement_filtered": "blimp", "ewok_filtered": "ewok"}
FULL |= {"entity_tracking": "entity_tracking", "comps": "comps", **PIQA}
FAST = {"blimp_fast": "blimp", "supplement_fast": "blimp", "ewok_fast": "ewok"}
FAST |= {"entity_tracking_fast": "entity_tracking", **PIQA}

# ---------------------------------------------------------------------------------------------------------------------
# Reading the tasks: a line of a file -> an Item, as evaluation_pipeline/sentence_zero_shot/read_files.py has it


@dataclass
class Item:
    part: str  # of the task, in which it is counted
    alternatives: list  # of (context, text): the text is scored, given the context
    answers: list  # what predictions.json says for each of them
    correct: int = 0  # the index of the right one


def blimp(row, stem):
    sentences = [row["sentence_good"], row["sentence_bad"]]
    part = row["UID"] if "field" in row else stem  # the supplement's have no UID
    return Item(part, [("", sentence) for sentence in sentences], sentences)


def ewok(row, stem):
    """Two contexts, and a target that fits the first."""
    alternatives = [(row[context], " " + row["Target1"]) for context in ("Context1", "Context2")]
    return Item(row["Domain"], alternatives, [context + target for context, target in alternatives])


def entity_tracking(row, stem):
    """A context and several options, of which the first is right. Items with "nothing" in an option are left out."""
    if any("nothing" in option for option in row["options"]):
        return None
    alternatives = [(row["input_prefix"], option) for option in row["options"]]
    return Item(f"{stem}_{row['numops']}_ops", alternatives, row["options"])


def comps(row, stem):
    """Two subjects, and a property that the first has."""
    names = {"comps_base": "base", "comps_wugs": "wugs", "comps_wugs_dist-before": "wugs_dist_before"}
    subjects = [row["prefix_acceptable"], row["prefix_unacceptable"]]
    alternatives = [(subject + " ", row["property_phrase"]) for subject in subjects]
    sentences = [subject + phrase for subject, phrase in alternatives]
    return Item(names.get(stem, "wugs_dist_in_between"), alternatives, sentences)


def global_piqa(row, number):
    solutions = [" " + row[f"solution{i}"] for i in range(number)]
    alternatives = [(row["prompt"], solution) for solution in solutions]
    return Item(row["example_id"], alternatives, solutions, row["label"])


READERS = {
    "blimp": blimp,
    "ewok": ewok,
    "entity_tracking": entity_tracking,
    "comps": comps,
    "global_piqa_parallel": lambda row, stem: global_piqa(row, 4),
    "global_piqa_nonparallel": lambda row, stem: global_piqa(row, 2),
}


def read_items(task, folder):
    """(Items of the *.jsonl files in a folder, sha256 of the files). Raises UserError naming file and line."""
    items, digest = [], hashlib.sha256()
    for file in data_files(folder, (".jsonl",)):
        text = read_text(file, "fetch it again")
        digest.update(text.encode())
        for number, row in json_rows(file, text):
            try:
                item = READERS[task](row, pathlib.Path(file).stem)
            except (ValueError, LookupError, TypeError) as e:
                raise UserError(f"{file}:{number}: not an item of {task} ({e}); fetch the file again") from None
            if item is not None:
                items.append(item)
    return items, digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Scoring


def choose(scores):
    """(the index chosen for each item, how many ties): the highest score; a coin decides a tie, the same each time."""
    coin = np.random.default_rng(0)
    highest = [scoring.best(of_item) for of_item in scores]
    return [int(coin.choice(best)) for best in highest], sum(len(best) > 1 for best in highest)


def accuracy(task, items, chosen):
    """Mean over the parts; in entity tracking over its three kinds, each the mean over its numbers of operations."""
    parts = {}
    for item, index in zip(items, chosen):
        parts.setdefault(item.part, []).append(index == item.correct)
    means = {part: np.mean(correct) for part, correct in parts.items()}
    if task == "entity_tracking":
        kinds = {}
        for part, mean in means.items():
            kinds.setdefault(part.rsplit("_", 2)[0], []).append(mean)  # regular_0_ops: regular
        means = {kind: np.mean(of_kind) for kind, of_kind in kinds.items()}
    return float(np.mean(list(means.values())))


def score_task(model, tokenizer, task, items):
    """(what predictions.json holds, {"accuracy", "items", "ties"})"""
    alternatives = [item.alternatives for item in items]
    per_token = task.startswith("global_piqa")
    scores = scoring.score_items(model, tokenizer, alternatives, per_token=per_token, beyond_context=True)
    chosen, ties = choose(scores)
    result = {"accuracy": accuracy(task, items, chosen), "items": len(items), "ties": ties}
    return predictions((item.part, item.answers[index]) for item, index in zip(items, chosen)), result


def jobs(run, data, track):
    """(revision, its checkpoint, task, folder of its data) of all that the challenge asks for."""
    for revision, path in checkpoints(run, track).items():
        form, tasks = ("full_eval", FULL) if revision == "main" else ("fast_eval", FAST)
        for folder, task in tasks.items():
            yield revision, path, task, os.path.join(data, form, folder)


def score(run, name, data, out, track="strict-small", device="auto"):
    """Writes OUT/NAME/REVISION/zero_shot/causal/TASK/FOLDER/predictions.json; their accuracies to OUT/NAME/scores.json.

    What scores.json has of the same checkpoint on the same data is done already. Returns the paths of what is missing.
    Raises UserError.
    """
    for folder in (run, data):
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: no such folder; see docs/babylm.md")
    read, sha256 = functools.cache(read_items), functools.cache(file_sha256)
    load = functools.lru_cache(1)(checkpoint.load_model)
    record = os.path.join(out, name, "scores.json")
    done, missing = read_json(record, required=os.path.exists(record)), []
    for revision, path, task, source in jobs(run, data, track):
        absent = [needed for needed in (path, source) if not os.path.exists(needed)]
        missing += absent
        if absent:
            continue
        folder = os.path.basename(source)
        items, data_sha256 = read(task, source)
        origin = {"checkpoint": sha256(path), "data": data_sha256}
        target = os.path.join(out, name, revision, "zero_shot", "causal", task, folder, "predictions.json")
        before = done.setdefault(revision, {}).get(folder, {})
        if os.path.exists(target) and origin.items() <= before.items():
            continue
        start = time.time()
        model, ckpt = load(path, device)
        predicted, result = score_task(model, ckpt.tokenizer, task, items)
        atomic_write(target, json.dumps(predicted))
        done[revision][folder] = result | origin
        atomic_write(record, json.dumps(done, indent=1) + "\n")
        numbers = f"{100 * result['accuracy']:6.2f} %{len(items):8,} items{result['ties']:6,} ties"
        print(f"{revision:<10}{folder:<25}{numbers}{time.time() - start:8.1f} s", flush=True)
    return list(dict.fromkeys(missing))


# ---------------------------------------------------------------------------------------------------------------------
# The check

TRACKS = {"strict-small": [mark for mark in BABYLM_WORDS if mark <= 100], "strict": BABYLM_WORDS}
GLOBAL_PIQA = {"global_piqa_parallel": 103, "global_piqa_nonparallel": 100}  # each item is a part
ACQUISITION = 8005  # words for each checkpoint
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "submission.yaml"), encoding="utf-8") as f:
    SIZES = {"blimp": BLIMP, **yaml.safe_load(f)}
FAST_PARTS = {  # the parts of the fast evaluation, for each checkpoint by words seen
    **{task: list(SIZES[task]) for task in ("blimp", "blimp_supplement", "ewok")},
    "entity_tracking_filtered": [f"regular_{operations}_ops" for operations in range(6)],
    **{task: [task] for task in GLOBAL_PIQA},
    "reading": ["spr", "rt"],
}


def revisions(track):
    """Names of the checkpoints by words seen that a track wants."""
    return [f"chck_{millions}M" for millions in TRACKS[track]]


def checkpoints(run, track="strict"):
    """{name of a revision: its file in a run's folder, whether it is there or not}, `main` first."""
    kept = {name: os.path.join(run, f"{name}.pt") for name in revisions(track)}
    return {"main": os.path.join(run, "ckpt.pt"), **kept}


def check(path, track="strict-small"):
    """Complaints about a collated file, each one line; [] if all is there. Raises UserError if it is no such file."""
    tree = read_json(path, required=True)  # None stands for what the pipeline did not find
    wanted = revisions(track)
    complaints = []
    for task, sizes in SIZES.items():
        complaints += check_task(task, tree.get(task) or {}, sizes)
    for task, size in GLOBAL_PIQA.items():
        examples = tree.get(task) or {}
        complaints += check_task(task, examples, dict.fromkeys(examples, 1))
        if examples and len(examples) != size:
            complaints.append(f"{task}: {len(examples)} items instead of {size}")
    if (tree.get("aoa") or {}).get("aoa") is None:
        complaints.append("aoa: missing")
    words = (tree.get("aoa_surprisals") or {}).get("results") or []
    steps = [row["step"] for row in words]
    for revision in wanted:
        if steps.count(revision) != ACQUISITION:
            complaints.append(f"aoa_surprisals/{revision}: {steps.count(revision)} words instead of {ACQUISITION}")
    fast = tree.get("fast_eval_results") or {}
    for task, parts in FAST_PARTS.items():
        complaints += check_fast(task, fast.get(task) or [], parts, wanted)
    return complaints


def check_task(task, found, sizes):
    """found: {part: {"predictions": [{"id", "pred"}]}}; sizes: {part: number of predictions}."""
    found = {part.lower(): value for part, value in found.items()}  # as the pipeline looks them up
    sizes = {part.lower(): size for part, size in sizes.items()}
    if not found:
        return [f"{task}: missing"]
    complaints = [f"{task}/{part}: not a part of this task" for part in found if part not in sizes]
    for part, size in sizes.items():
        rows = (found.get(part) or {}).get("predictions") or []
        if len(rows) != size:
            complaints.append(f"{task}/{part}: {len(rows)} predictions instead of {size}")
        elif any(row.get("id") is None or row.get("pred") is None for row in rows):
            complaints.append(f"{task}/{part}: a prediction without `id` or `pred`")
    return complaints


def check_fast(task, rows, parts, wanted):
    """rows: for each of the `wanted` checkpoints {part: accuracy}, or None."""
    if len(rows) != len(wanted):
        return [f"fast_eval_results/{task}: {len(rows)} checkpoints instead of {len(wanted)}"]
    complaints = []
    for revision, row in zip(wanted, rows):
        missing = {part.lower() for part in parts} - {part.lower() for part in row or {}}
        if missing:
            complaints.append(f"fast_eval_results/{task}/{revision}: {len(missing)} of {len(parts)} parts missing")
    return complaints


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    subparsers = parser.add_subparsers(dest="command", required=True)
    p = subparsers.add_parser("score", help="predictions for a run's checkpoints, in the pipeline's format")
    p.add_argument("run", help="a run's folder, with ckpt.pt and chck_1M.pt, ...")
    p.add_argument("name", help="the folder of export.py RUN NAME --all-checkpoints: its last part is the model's name")
    p.add_argument("--data", required=True, metavar="DIR", help="the pipeline's evaluation_data")
    p.add_argument("--out", required=True, metavar="DIR", help="the pipeline's results")
    p.add_argument("--track", choices=TRACKS, default="strict-small")
    p.add_argument("--device", default="auto", help="auto | cpu | cuda | mps")
    p = subparsers.add_parser("check", help="whether the collated file has all that the leaderboard wants")
    p.add_argument("file", help="all_full_preds_and_fast_scores_causal.json")
    p.add_argument("--track", choices=TRACKS, default="strict-small")
    args = parser.parse_args(argv)

    if args.command == "check":
        complaints = check(args.file, args.track)
        print("\n".join(complaints) or "complete")
        return 1 if complaints else 0
    name = pathlib.Path(os.path.abspath(args.name)).stem  # as the pipeline cuts it
    for path in score(args.run, name, args.data, args.out, args.track, args.device):
        print(f"missing: {path}")
    print("reading times, fine-tuning and age of acquisition are left to the pipeline: docs/babylm.md, step 5")
    return 0


if __name__ == "__main__":
    cli.run(main)
