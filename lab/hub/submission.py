"""What a BabyLM submission consists of: its checkpoints, and every task, part and item that the leaderboard wants.

The pipeline's own collation leaves out what is incomplete, with a warning, and does not notice that a paradigm is
missing; `check` does. The sizes are in submission.yaml.
"""

import os

from lab.checkpoint import BABYLM_WORDS
from lab.files import read_json
from lab.score.pairs import BLIMP

import yaml

TRACKS = {"strict-small": [mark for mark in BABYLM_WORDS if mark <= 100], "strict": BABYLM_WORDS}
GLOBAL_PIQA = {"global_piqa_parallel": 103, "global_piqa_nonparallel": 100}  # each item is a part
ACQUISITION = 8005  # words for each checkpoint
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "submission.yaml"), encoding="utf-8") as f:
    SIZES = {"blimp": BLIMP, **yaml.safe_load(f)}
FAST = {  # the parts of the fast evaluation, for each checkpoint by words seen
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
    for task, parts in FAST.items():
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
