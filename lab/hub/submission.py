"""Whether a collated BabyLM submission has all that the leaderboard wants: every task, part and item.

The pipeline's own collation replaces what is incomplete by nothing, with a warning, and does not see that a paradigm is
missing. Sizes: its evaluation_pipeline/collate_preds.py.
"""

from lab.files import UserError
from lab.run.resume import BABYLM_WORDS
from lab.score.pairs import BLIMP, parse_json, read_bytes

TRACKS = {"strict-small": [mark for mark in BABYLM_WORDS if mark <= 100], "strict": BABYLM_WORDS}

ENTITY_TRACKING = {
    "regular": [517, 409, 405, 425, 388, 94],
    "ambiref": [508, 428, 413, 409, 434, 123],
    "move_contents": [516, 437, 399, 406, 353, 116],
}  # by number of operations
SIZES = {
    "blimp": BLIMP,
    "blimp_supplement": {
        "hypernym": 842,
        "qa_congruence_easy": 64,
        "qa_congruence_tricky": 165,
        "subject_aux_inversion": 3867,
        "turn_taking": 280,
    },
    "ewok": {
        "agent-properties": 2210,
        "social-relations": 1548,
        "physical-relations": 818,
        "material-dynamics": 770,
        "physical-interactions": 556,
        "spatial-relations": 490,
        "social-properties": 328,
        "quantitative-properties": 314,
        "social-interactions": 294,
        "material-properties": 170,
        "physical-dynamics": 120,
    },
    "entity_tracking_filtered": {
        f"{kind}_{operations}_ops": size
        for kind, sizes in ENTITY_TRACKING.items()
        for operations, size in enumerate(sizes)
    },
    "comps": {"base": 49340, "wugs_dist_before": 13896, "wugs_dist_in_between": 13896, "wugs": 13896},
    "reading": {"reading": 1726},
    "glue": {"boolq": 1635, "mnli": 4908, "mrpc": 204, "multirc": 2424, "qqp": 20215, "rte": 139, "wsc": 52},
}
GLOBAL_PIQA = {"global_piqa_parallel": 103, "global_piqa_nonparallel": 100}
AOA = 8005

FAST = {  # the parts of the fast evaluation
    "blimp": SIZES["blimp"],
    "blimp_supplement": SIZES["blimp_supplement"],
    "ewok": SIZES["ewok"],
    "entity_tracking_filtered": [f"regular_{operations}_ops" for operations in range(6)],
    "global_piqa_parallel": ["global_piqa_parallel"],
    "global_piqa_nonparallel": ["global_piqa_nonparallel"],
    "reading": ["spr", "rt"],
}


def revisions(track):
    """Names of the checkpoints by words seen that a track wants."""
    return [f"chck_{millions}M" for millions in TRACKS[track]]


def check(path, track="strict-small"):
    """Complaints about a collated file, each one line; [] if all is there. Raises UserError if it is no such file."""
    try:
        tree = parse_json(read_bytes(path))
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not what scripts/collate_preds.sh writes; collate again")
    complaints = []
    for task, sizes in SIZES.items():
        complaints += check_task(task, tree.get(task), sizes)
    for task, size in GLOBAL_PIQA.items():
        examples = as_dict(tree.get(task))
        complaints += check_task(task, examples, dict.fromkeys(examples, 1))
        if examples and len(examples) != size:
            complaints.append(f"{task}: {len(examples)} items instead of {size}")
    if as_dict(tree.get("aoa")).get("aoa") is None:
        complaints.append("aoa: missing")
    words = as_dict(tree.get("aoa_surprisals")).get("results") or []
    steps = [as_dict(row).get("step") for row in words]
    for revision in revisions(track):
        if steps.count(revision) != AOA:
            complaints.append(f"aoa_surprisals/{revision}: {steps.count(revision)} words instead of {AOA}")
    fast = as_dict(tree.get("fast_eval_results"))
    for task, parts in FAST.items():
        complaints += check_fast(task, fast.get(task), parts, revisions(track))
    return complaints


def as_dict(value):
    return value if isinstance(value, dict) else {}


def check_task(task, found, sizes):
    """found: {part: {"predictions": [{"id", "pred"}]}}; sizes: {part: number of predictions}."""
    found = {part.lower(): value for part, value in as_dict(found).items()}  # as the pipeline looks them up
    sizes = {part.lower(): size for part, size in sizes.items()}
    if not found:
        return [f"{task}: missing"]
    complaints = [f"{task}/{part}: not a part of this task" for part in found if part not in sizes]
    for part, size in sizes.items():
        rows = as_dict(found.get(part)).get("predictions") or []
        if len(rows) != size:
            complaints.append(f"{task}/{part}: {len(rows)} predictions instead of {size}")
        elif not all(as_dict(row).get(key) is not None for row in rows for key in ("id", "pred")):
            complaints.append(f"{task}/{part}: a prediction without `id` or `pred`")
    return complaints


def check_fast(task, rows, parts, wanted):
    """rows: for each of the `wanted` checkpoints {part: accuracy}, or None."""
    rows = rows if isinstance(rows, list) else []
    if len(rows) != len(wanted):
        return [f"fast_eval_results/{task}: {len(rows)} checkpoints instead of {len(wanted)}"]
    complaints = []
    for revision, row in zip(wanted, rows):
        missing = {part.lower() for part in parts} - {part.lower() for part in as_dict(row)}
        if missing:
            complaints.append(f"fast_eval_results/{task}/{revision}: {len(missing)} of {len(parts)} parts missing")
    return complaints
