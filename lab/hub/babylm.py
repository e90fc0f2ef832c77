"""The BabyLM challenge of 2026: a run's checkpoints scored on its zero-shot tasks, and the submission checked.

    python -m lab.hub.babylm score out/mine my-babylm --data EVALUATION_DATA --out RESULTS
    python -m lab.hub.babylm check RESULTS/my-babylm/all_full_preds_and_fast_scores_causal.json

The challenge's pipeline (babylm-org/babylm-eval at 3d57ddc, folder strict/) is started anew for each of some 120 pairs
of checkpoint and task. `score` writes the same predictions.json files with lab/score/scoring.py: BLiMP, its
supplement, EWoK, entity tracking, COMPS and GlobalPIQA, in full for ckpt.pt, in their fast form for chck_1M.pt, ...
What is not there is named and skipped; what has been scored is not scored again. Reading times, age of acquisition and
fine-tuning are left to the pipeline. docs/babylm.md goes through all of it, step by step.
"""

import argparse
from collections import Counter
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

TRACKS = {"strict-small": [mark for mark in BABYLM_WORDS if mark <= 100], "strict": BABYLM_WORDS}

# {folder of the data: its task}, as the pipeline calls them
PIQA = {"global_piqa_parallel": "global_piqa_parallel", "global_piqa_nonparallel": "global_piqa_nonparallel"}
FULL = {"blimp_filtered": "blimp", "supplement_filtered": "blimp", "ewok_filtered": "ewok"}
FULL |= {"entity_tracking": "entity_tracking", "comps": "comps", **PIQA}
FAST = {"blimp_fast": "blimp", "supplement_fast": "blimp", "ewok_fast": "ewok"}
FAST |= {"entity_tracking_fast": "entity_tracking", **PIQA}


def checkpoints(run, track="strict"):
    """{revision: its file in a run's folder, there or not} for all that a track wants, `main` first."""
    kept = [f"chck_{millions}M" for millions in TRACKS[track]]
    return {"main": os.path.join(run, "ckpt.pt"), **{name: os.path.join(run, f"{name}.pt") for name in kept}}


# ---------------------------------------------------------------------------------------------------------------------
# Reading the tasks: a line of a file -> an Item, as in evaluation_pipeline/sentence_zero_shot/read_files.py


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


def global_piqa(row, stem):
    """A prompt and its solutions, four in the parallel part and two in the other."""
    solutions = [row[key] for key in ("solution0", "solution1", "solution2", "solution3") if row.get(key)]
    answers = [" " + solution for solution in solutions]
    return Item(row["example_id"], [(row["prompt"], answer) for answer in answers], answers, row["label"])


READERS = {"blimp": blimp, "ewok": ewok, "entity_tracking": entity_tracking, "comps": comps}
READERS |= dict.fromkeys(PIQA, global_piqa)


def read_items(task, folder):
    """(Items of the *.jsonl files in a folder, sha256 of the files). Raises UserError naming file and line."""
    items, digest = [], hashlib.sha256()
    for file in data_files(folder, (".jsonl",)):
        text = read_text(file, "fetch it again")
        digest.update(text.encode())
        for number, row in json_rows(file, text):
            try:
                item = READERS[task](row, pathlib.Path(file).stem)
            except (LookupError, TypeError, AttributeError) as e:
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
    """The mean over the parts; in entity tracking over its three kinds, of each the mean over its numbers of steps."""
    means = means_by([item.part for item in items], [index == item.correct for item, index in zip(items, chosen)])
    if task == "entity_tracking":
        means = means_by([part.rsplit("_", 2)[0] for part in means], means.values())  # regular_0_ops: regular
    return float(np.mean(list(means.values())))


def means_by(names, values):
    """{name: the mean of its values}"""
    values_of = {}
    for name, value in zip(names, values):
        values_of.setdefault(name, []).append(value)
    return {name: np.mean(values) for name, values in values_of.items()}


def score_task(model, tokenizer, task, items):
    """(what predictions.json holds, {"accuracy", "items", "ties"})"""
    alternatives = [item.alternatives for item in items]
    scores = scoring.score_items(model, tokenizer, alternatives, per_token=task in PIQA)
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

    What scores.json says of the same checkpoint and the same data is not done again. Returns the paths of what is
    missing. Raises UserError.
    """
    for folder in (run, data):
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: no such folder; see docs/babylm.md")
    read, sha256 = functools.cache(read_items), functools.cache(file_sha256)
    load = functools.lru_cache(1)(checkpoint.load_model)
    record = os.path.join(out, name, "scores.json")
    done, missing = {}, {}
    if os.path.exists(record):
        done = read_json(record, "delete it to score everything again")
    for revision, path, task, source in jobs(run, data, track):
        absent = [needed for needed in (path, source) if not os.path.exists(needed)]
        if absent:
            missing |= dict.fromkeys(absent)
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
    return list(missing)


# ---------------------------------------------------------------------------------------------------------------------
# The check. The pipeline's own collation leaves out what is incomplete, with a warning, and does not notice that a
# paradigm is missing.

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "submission.yaml"), encoding="utf-8") as f:
    SIZES = {"blimp": {part.lower(): size for part, size in BLIMP.items()}}  # {task: {part: number of predictions}}
    SIZES |= yaml.safe_load(f)
ACQUISITION = 8005  # words for each checkpoint
FAST_PARTS = {task: SIZES[task].keys() for task in ("blimp", "blimp_supplement", "ewok")}  # for each checkpoint
FAST_PARTS["entity_tracking_filtered"] = {f"regular_{operations}_ops" for operations in range(6)}
FAST_PARTS |= {task: {task} for task in PIQA}
FAST_PARTS["reading"] = {"spr", "rt"}


def check(path, track="strict-small"):
    """What a collated file lacks of what the leaderboard wants, a line each; [] if nothing. Raises UserError."""
    tree = read_json(path, "give the collated predictions")  # None stands for what the pipeline did not find
    revisions = list(checkpoints("", track))[1:]
    complaints = []
    for task, sizes in SIZES.items():
        found = count_predictions(tree.get(task))
        if task in PIQA:  # where each item is a part
            found = {"items": sum(found.values())}
        complaints += differences(task, found, sizes)
    if (tree.get("aoa") or {}).get("aoa") is None:
        complaints.append("aoa: missing")
    words = (tree.get("aoa_surprisals") or {}).get("results") or []
    found = Counter(row["step"] for row in words)
    complaints += differences("aoa_surprisals", found, dict.fromkeys(revisions, ACQUISITION))
    for task, parts in FAST_PARTS.items():
        rows = (tree.get("fast_eval_results") or {}).get(task) or []  # of each checkpoint {part: accuracy}, or None
        found = {"checkpoints": len(rows)}
        for revision, row in zip(revisions, rows):
            found[revision] = len(parts & {part.lower() for part in row or {}})
        wanted = {"checkpoints": len(revisions), **dict.fromkeys(revisions, len(parts))}
        complaints += differences(f"fast_eval_results/{task}", found, wanted)
    return complaints


def count_predictions(parts):
    """{part: how many of its predictions have an `id` and a `pred`}, in lower case: the pipeline ignores it too."""
    counts = {}
    for part, value in (parts or {}).items():
        rows = (value or {}).get("predictions") or []
        counts[part.lower()] = sum(row.get("id") is not None and row.get("pred") is not None for row in rows)
    return counts


def differences(place, found, wanted):
    """A line for each name of which there are not as many as wanted. found, wanted: {name: how many}."""
    if not any(found.values()):
        return [f"{place}: missing"]
    lines = [f"{place}/{name}: not wanted" for name in found if name not in wanted]
    for name, count in wanted.items():
        if found.get(name, 0) != count:
            lines.append(f"{place}/{name}: {found.get(name, 0)} instead of {count}")
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# The command


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
