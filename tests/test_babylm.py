"""lab/hub/babylm.py: the pipeline's format, the check of submissions, docs/babylm.md. All data is made up."""

import json
import os
import re
import shutil
import subprocess
import sys

from conftest import ROOT
from lab import checkpoint
from lab.files import UserError
from lab.hub import babylm
from stand_ins import load_json, plainly, save_checkpoint

import numpy as np
import pytest

BLIMP = {"sentence_good": "The cats run.", "sentence_bad": "The cats runs.", "field": "syntax", "UID": "a_B"}
QUESTION = {"sentence_good": "Is the dog here?", "sentence_bad": "The dog is here?"}
EWOK = {"Domain": "social", "Context1": "The cat ran.", "Context2": "The cat slept.", "Target1": "It is awake."}
LONG = "Box 0 contains the key. " * 12 + "Box 0 contains"  # longer than the model's context
BOX = {"input_prefix": LONG, "options": [" the key", " the dog"], "numops": 2}
LEFT_OUT = {"input_prefix": LONG, "options": [" the key", " nothing"], "numops": 1}
COMPS = {"prefix_acceptable": "a cat", "prefix_unacceptable": "a tree", "property_phrase": "can run."}
PIQA = {"example_id": "a1", "prompt": "To cut the bread,", "label": 1}
PIQA |= {"solution0": "take a knife.", "solution1": "take a tree.", "solution2": "take the cat.", "solution3": "see."}
TWO_SOLUTIONS = PIQA | {"example_id": "a2", "label": 0, "solution2": None, "solution3": None}
FILES = {
    "full_eval/blimp_filtered/x.jsonl": [BLIMP, BLIMP],
    "full_eval/supplement_filtered/turn_taking.jsonl": [QUESTION],
    "full_eval/ewok_filtered/social.jsonl": [EWOK],
    "full_eval/entity_tracking/regular.jsonl": [BOX, LEFT_OUT],
    "full_eval/comps/comps_base.jsonl": [COMPS],
    "full_eval/comps/comps_wugs_dist-before.jsonl": [COMPS],
    "full_eval/global_piqa_parallel/eng_latn.jsonl": [PIQA],
    "full_eval/global_piqa_nonparallel/eng_latn.jsonl": [TWO_SOLUTIONS],
    "fast_eval/blimp_fast/x.jsonl": [BLIMP, BLIMP],
    "fast_eval/ewok_fast/social.jsonl": [EWOK],
}


def write_tasks(folder):
    for path, rows in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a run (ckpt.pt, chck_1M.pt, chck_20M.pt) and data; the current directory of the test."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("ckpt", "chck_1M", "chck_20M")):
        save_checkpoint(f"run/{name}.pt", seed)
    write_tasks(tmp_path / "data")
    return tmp_path


def score():
    return babylm.score("run", "m", "data", "results", device="cpu")


def chosen(path):
    """{part: {id: what is chosen}} of a predictions.json."""
    parts = load_json(f"results/m/{path}/predictions.json")
    return {part: {row["id"]: row["pred"] for row in rows["predictions"]} for part, rows in parts.items()}


def test_predictions_in_the_pipelines_format(work, capsys):
    missing = score()
    assert "data/fast_eval/supplement_fast" in missing and "run/chck_2M.pt" in missing and len(missing) == 17 + 4
    assert len(capsys.readouterr().out.splitlines()) == 7 + 2 * 2
    scores = load_json("results/m/scores.json")
    assert scores.keys() == {"main", "chck_1M", "chck_20M"} and scores["main"]["comps"]["items"] == 2
    found = {path.parent.name: load_json(path).keys() for path in work.rglob("main/**/predictions.json")}
    assert found == {
        "blimp_filtered": {"a_B"},
        "supplement_filtered": {"turn_taking"},
        "ewok_filtered": {"social"},
        "entity_tracking": {"regular_2_ops"},  # without "nothing"
        "comps": {"base", "wugs_dist_before"},
        "global_piqa_parallel": {"a1"},
        "global_piqa_nonparallel": {"a2"},
    }
    cats = chosen("chck_20M/zero_shot/causal/blimp/blimp_fast")["a_B"]
    assert list(cats) == ["a_B_0", "a_B_1"] and set(cats.values()) < {"The cats run.", "The cats runs."}


def test_what_is_chosen_is_the_likeliest(work):
    """By differences of whole sentences' scores, where the words of context and text are tokens of their own."""
    score()
    model, ckpt = checkpoint.load_model("run/ckpt.pt")

    def likelihood(context, text):
        whole, given = plainly(model, ckpt.tokenizer, [context + text, context]).tolist()
        return whole - given

    ewok = {}
    for context in ("The cat ran.", "The cat slept."):
        ewok[f"{context} It is awake."] = likelihood(context, " It is awake.")
    main = "main/zero_shot/causal"
    assert chosen(f"{main}/ewok/ewok_filtered")["social"]["social_0"] == max(ewok, key=ewok.get)
    prompt, piqa = PIQA["prompt"], {}
    for solution in (" take a knife.", " take a tree.", " take the cat.", " see."):
        tokens = len(ckpt.tokenizer.encode(prompt + solution)) - len(ckpt.tokenizer.encode(prompt))
        piqa[solution] = likelihood(prompt, solution) / tokens
    assert chosen(f"{main}/global_piqa_parallel/global_piqa_parallel")["a1"]["a1_0"] == max(piqa, key=piqa.get)


def test_a_second_start_does_what_is_missing(work, capsys):
    def scored():
        score()
        return [line.split()[:2] for line in capsys.readouterr().out.splitlines()]

    assert len(scored()) == 11 and scored() == []
    os.remove("results/m/main/zero_shot/causal/comps/comps/predictions.json")
    os.makedirs("data/fast_eval/supplement_fast")
    shutil.copy("data/full_eval/supplement_filtered/turn_taking.jsonl", "data/fast_eval/supplement_fast")
    assert scored() == [["main", "comps"], ["chck_1M", "supplement_fast"], ["chck_20M", "supplement_fast"]]
    shutil.copy("run/ckpt.pt", "run/chck_1M.pt")  # trained again
    assert scored() == [["chck_1M", folder] for folder in ("blimp_fast", "supplement_fast", "ewok_fast")]
    (work / "results/m/scores.json").write_text('{"main": ')
    with pytest.raises(UserError, match="scores.json: .*damaged"):
        scored()


def test_a_tie_is_decided_by_a_coin():
    scores = [np.ones(2)] * 200 + [np.array([1.0, 2.0, 0.0])]
    chosen, ties = babylm.choose(scores)
    assert ties == 200 and chosen[-1] == 1 and 60 < sum(chosen[:-1]) < 140 and babylm.choose(scores) == (chosen, ties)


def test_accuracy_is_a_mean_of_means():
    def items(*parts):
        return [babylm.Item(part, [], []) for part in parts]

    assert babylm.accuracy("blimp", items("a", "a", "a", "b"), [0, 0, 1, 1]) == pytest.approx((2 / 3 + 0) / 2)
    parts = items("regular_0_ops", "regular_1_ops", "move_contents_0_ops")
    assert babylm.accuracy("entity_tracking", parts, [0, 1, 0]) == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize("line", ["{", "[1]", '{"Domain": "x"}'])
def test_a_broken_line_is_named(line, work):
    with open("data/full_eval/ewok_filtered/social.jsonl", "a", encoding="utf-8") as f:
        f.write(line + "\n")
    with pytest.raises(UserError, match="social.jsonl:2: (not an item of ewok|not valid JSON)"):
        score()


# --- the check


REVISIONS = list(babylm.checkpoints("run", "strict-small"))[1:]


def whole_submission():
    tree = {}
    for task, sizes in babylm.SIZES.items():
        if task in babylm.PIQA:
            sizes = {f"{task}_{i}": 1 for i in range(sizes["items"])}
        tree[task] = {part: {"predictions": [{"id": 0, "pred": 0}] * size} for part, size in sizes.items()}
    tree["aoa"] = {"aoa": 0.1}
    tree["aoa_surprisals"] = {"results": [{"step": name} for name in REVISIONS] * babylm.ACQUISITION}
    tree["fast_eval_results"] = {task: [dict.fromkeys(parts, 0.5)] * 19 for task, parts in babylm.FAST_PARTS.items()}
    return tree


def test_what_a_submission_lacks_is_named(tmp_path):
    def complaints(tree, track="strict-small"):
        (tmp_path / "all.json").write_text(json.dumps(tree))
        return babylm.check(str(tmp_path / "all.json"), track)

    tree = whole_submission()
    tree["blimp"]["principle_A_case_1"] = tree["blimp"].pop("principle_a_case_1")
    assert complaints(tree) == []
    assert "fast_eval_results/blimp/checkpoints: 19 instead of 28" in complaints(tree, "strict")
    tree["blimp"].pop("passive_1")
    tree["blimp"]["invented"] = {}
    tree["comps"] = None
    tree["ewok"]["social-properties"]["predictions"].pop()
    tree["glue"]["rte"]["predictions"][3] = {"id": 3}
    tree["global_piqa_parallel"].pop("global_piqa_parallel_7")
    del tree["aoa"], tree["reading"]
    tree["aoa_surprisals"]["results"].pop()
    tree["fast_eval_results"]["reading"] = [None] * 19
    tree["fast_eval_results"]["ewok"] = []
    assert complaints(tree) == [
        "blimp/invented: not wanted",
        "blimp/passive_1: 0 instead of 840",
        "ewok/social-properties: 327 instead of 328",
        "comps: missing",
        "reading: missing",
        "global_piqa_parallel/items: 102 instead of 103",
        "glue/rte: 138 instead of 139",
        "aoa: missing",
        "aoa_surprisals/chck_100M: 8004 instead of 8005",
        "fast_eval_results/ewok: missing",
        *(f"fast_eval_results/reading/{name}: 0 instead of 2" for name in REVISIONS),
    ]
    assert [line.partition(": ")[2] for line in complaints({})] == ["missing"] * (9 + 2 + 7)
    with pytest.raises(UserError, match="all.json"):
        complaints([])


# --- the command line


def test_command(work, capsys):
    with pytest.raises(UserError, match="none: no such folder"):
        babylm.main(["score", "none", "m", "--data", "data", "--out", "results"])
    (work / "all.json").write_text("{}")
    assert babylm.main(["check", "all.json"]) == 1 and "blimp: missing" in capsys.readouterr().out.splitlines()


# --- docs/babylm.md, to the letter: in one shell, in its order, with stand-ins for downloads and pipeline

PYTHON = f"""#!/bin/bash
case "$1" in
-m) if [ "$2" = venv ]; then cp -r "$STAND_INS/venv" "$3"; exit; fi; exec {sys.executable} "$@" ;;
prepare.py) set -- "$@" data.source=pocket data.pocket_words=100000 data.validation_kb=4 tokenizer.vocab_size=1000 ;;
train.py) set -- "$@" model.hidden_size=16 model.num_hidden_layers=1 model.num_attention_heads=2 \
  model.intermediate_size=24 model.max_position_embeddings=64 model.embedding=full model.layer_sharing=none \
  train.batch_size=256 train.gradient_accumulation_steps=1 train.max_words=1.1e6 train.eval_every=1000 \
  train.eval_windows=8 train.sample_tokens=0 train.device=cpu train.compile=false train.dtype=float32 ;;
esac
exec {sys.executable} {ROOT}/"$@"
"""
# As any program or script of others, it notes its words and looks for the files among them; a download is a copy.
OTHERS = """#!/bin/bash
echo "$*" >> "$STAND_INS/log"
for word in "$@"; do
  case "$word" in
  https:*) cp -r "$STAND_INS/pipeline" babylm-eval || exit 1 ;;
  scripts.download_evals) cp -r "$STAND_INS/evaluation_data" . || exit 1 ;;
  USER/*) ;;
  */* | *.txt | *.zip) test -e "$word" || exit 1 ;;
  esac
done
case "$0" in
scripts/collate*) cp "$STAND_INS/whole.json" "results/$(basename "$1")/all_full_preds_and_fast_scores_causal.json" ;;
scripts/*) test "$(command -v python)" -ef .venv/bin/python ;;
esac
"""
FILES_OF_OTHERS = """bin/git bin/hf bin/unzip venv/bin/pip venv/bin/python venv/bin/huggingface-cli
pipeline/strict/scripts/eval_finetuning.sh pipeline/strict/scripts/eval_aoa.sh
pipeline/strict/scripts/collate_preds.sh pipeline/strict/requirements.txt
pipeline/strict/evaluation_pipeline/global_piqa/dl.py evaluation_data/full_eval/reading/reading_data.csv
evaluation_data/fast_eval/reading/reading_data.csv evaluation_data/fast_eval/ewok_fast.zip""".split()


@pytest.mark.skipif(os.name != "posix", reason="needs a Unix shell")
def test_the_page_runs_to_the_letter(tmp_path):
    stand_ins, clone = tmp_path / "stand-ins", tmp_path / "clone"
    for name, content in {**dict.fromkeys(FILES_OF_OTHERS, OTHERS), "bin/python": PYTHON}.items():
        path = stand_ins / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    write_tasks(stand_ins / "evaluation_data")
    (stand_ins / "whole.json").write_text(json.dumps(whole_submission()))
    pairs = clone / "data" / "blimp"  # or prepare.py would fetch BLiMP
    pairs.mkdir(parents=True)
    (pairs / "x.jsonl").write_text(json.dumps(BLIMP) + "\n")

    page = (ROOT / "docs" / "babylm.md").read_text(encoding="utf-8")
    steps = "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.S | re.M))
    more = {"STAND_INS": str(stand_ins), "PATH": f"{stand_ins}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env = {**os.environ, **more, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-ec", steps], cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("complete"), done.stdout + done.stderr
    assert sorted(os.listdir(clone / "my-babylm")) == ["chck_1M", "main"]
    card = (clone / "my-babylm" / "main" / "my-babylm" / "README.md").read_text()
    assert "| blimp_filtered | " in card and "minimal pairs, a mean over" in card and "`mit`" in card
    assert (clone / "words.png").stat().st_size > 5000
    log = (stand_ins / "log").read_text()
    for revision in ("main", "chck_1M"):
        assert f"upload USER/my-babylm my-babylm/{revision}/my-babylm . --revision {revision}\n" in log
    assert "--model_path_or_name ../../my-babylm/chck_1M/my-babylm --revision_name chck_1M" in log
