"""lab/hub/babylm.py: predictions in its format, the check of submissions, the uploads. All data is made up."""

import json
import os
import shutil
import subprocess
import sys

from conftest import ROOT, refused
from lab import checkpoint
from lab.files import UserError
from lab.hub import babylm, submission
from lab.text import pocket_english
from model import Model, ModelConfig
from stand_ins import plainly
import tokenizer

import pytest
import torch

SHAPE = ModelConfig(
    vocab_size=400,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
)
PIQA = {
    "example_id": "a1",
    "prompt": "To cut the bread,",
    "solution0": "take a knife.",
    "solution1": "take a tree.",
    "solution2": "take the cat.",
    "solution3": "see.",
    "label": 1,
}
ROWS = {
    "blimp": [
        {"sentence_good": "The cats run.", "sentence_bad": "The cats runs.", "field": "syntax", "UID": "a_B"},
        {"sentence_good": "A dog sees it.", "sentence_bad": "A dog see it.", "field": "syntax", "UID": "a_B"},
    ],
    "supplement": [{"sentence_good": "Is the dog here?", "sentence_bad": "The dog is here?"}],
    "ewok": [
        {
            "Domain": "social",
            "Context1": "The cat ran.",
            "Context2": "The cat slept.",
            "Target1": "It is awake.",
            "Target2": "It is asleep.",
        }
    ],
    "entity_tracking": [
        {
            "input_prefix": "Box 0 contains the key. " * 12 + "Box 0 contains",
            "options": [" the key", " the dog"],
            "numops": 2,
        },  # longer than the model's context
        {"input_prefix": "Box 0 contains", "options": [" the key", " nothing"], "numops": 1},
    ],
    "comps": [{"prefix_acceptable": "a cat", "prefix_unacceptable": "a tree", "property_phrase": "can run."}],
    "piqa": [PIQA, PIQA | {"example_id": "a2", "label": 0, "solution2": None, "solution3": None}],
}
FILES = {
    "full_eval/blimp_filtered/x.jsonl": ROWS["blimp"],
    "full_eval/supplement_filtered/turn_taking.jsonl": ROWS["supplement"],
    "full_eval/ewok_filtered/social.jsonl": ROWS["ewok"],
    "full_eval/entity_tracking/regular.jsonl": ROWS["entity_tracking"],
    "full_eval/comps/comps_base.jsonl": ROWS["comps"],
    "full_eval/comps/comps_wugs_dist-before.jsonl": ROWS["comps"],
    "full_eval/global_piqa_parallel/eng_latn.jsonl": ROWS["piqa"][:1],
    "full_eval/global_piqa_nonparallel/eng_latn.jsonl": ROWS["piqa"][1:],
    "fast_eval/blimp_fast/x.jsonl": ROWS["blimp"],
    "fast_eval/ewok_fast/social.jsonl": ROWS["ewok"],
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a run (ckpt.pt, chck_1M.pt, chck_20M.pt) and data; the current directory of the test."""
    monkeypatch.chdir(tmp_path)
    tok = tokenizer.train([line for line in pocket_english.text(3000, seed=1) if line], 400)
    for seed, name in enumerate(("ckpt", "chck_1M", "chck_20M")):
        torch.manual_seed(seed)
        model = Model(SHAPE)
        torch.nn.init.normal_(model.lm_head.weight)
        checkpoint.save(f"run/{name}.pt", checkpoint.make(SHAPE, model.state_dict(), tok.model_bytes, {}))
    for path, rows in FILES.items():
        os.makedirs(os.path.dirname("data/" + path), exist_ok=True)
        with open("data/" + path, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
    return tmp_path


def predictions(path):
    with open(f"results/m/{path}/predictions.json", encoding="utf-8") as f:
        return json.load(f)


def test_predictions_in_the_pipelines_format(work, capsys):
    missing = babylm.score("run", "m", "data", "results", device="cpu")
    main = "main/zero_shot/causal/"
    chosen = predictions(main + "blimp/blimp_filtered")["a_B"]["predictions"]
    assert [row["id"] for row in chosen] == ["a_B_0", "a_B_1"]
    assert chosen[0]["pred"] in ("The cats run.", "The cats runs.")
    assert predictions(main + "blimp/supplement_filtered").keys() == {"turn_taking"}
    (chosen,) = predictions(main + "ewok/ewok_filtered")["social"]["predictions"]
    assert chosen["pred"] in ("The cat ran. It is awake.", "The cat slept. It is awake.")
    assert predictions(main + "entity_tracking/entity_tracking").keys() == {"regular_2_ops"}  # without "nothing"
    chosen = predictions(main + "comps/comps")
    assert chosen.keys() == {"base", "wugs_dist_before"}
    assert chosen["base"]["predictions"][0]["pred"] in ("a cat can run.", "a tree can run.")
    for task, examples in (("global_piqa_parallel", {"a1"}), ("global_piqa_nonparallel", {"a2"})):
        assert predictions(f"{main}{task}/{task}").keys() == examples
    assert predictions("chck_20M/zero_shot/causal/ewok/ewok_fast").keys() == {"social"}
    assert "data/fast_eval/supplement_fast" in missing and "run/chck_2M.pt" in missing and len(missing) == 17 + 4
    scores = json.loads((work / "results/m/scores.json").read_text())
    assert scores.keys() == {"main", "chck_1M", "chck_20M"} and scores["main"]["comps"]["items"] == 2
    assert len(capsys.readouterr().out.splitlines()) == 7 + 2 * 2


def test_what_is_chosen_is_the_likeliest(work):
    """By differences of whole sentences' scores, where the words of context and text are tokens of their own."""
    babylm.score("run", "m", "data", "results", device="cpu")
    model, ckpt = checkpoint.load_model("run/ckpt.pt")

    def likelihood(context, text):
        whole, given = plainly(model, ckpt.tokenizer, [context + text, context]).tolist()
        return whole - given

    ewok = {context: likelihood(context, " It is awake.") for context in ("The cat ran.", "The cat slept.")}
    (chosen,) = predictions("main/zero_shot/causal/ewok/ewok_filtered")["social"]["predictions"]
    assert chosen["pred"] == max(ewok, key=ewok.get) + " It is awake."
    count = len(ckpt.tokenizer.encode(PIQA["prompt"]))
    piqa = {}
    for solution in (" " + PIQA[f"solution{i}"] for i in range(4)):
        tokens = len(ckpt.tokenizer.encode(PIQA["prompt"] + solution)) - count
        piqa[solution] = likelihood(PIQA["prompt"], solution) / tokens
    (chosen,) = predictions("main/zero_shot/causal/global_piqa_parallel/global_piqa_parallel")["a1"]["predictions"]
    assert chosen["pred"] == max(piqa, key=piqa.get)


def test_a_second_start_does_what_is_missing(work, capsys):
    def scored():
        babylm.score("run", "m", "data", "results", device="cpu")
        return [line.split()[:2] for line in capsys.readouterr().out.splitlines()]

    assert len(scored()) == 11 and scored() == []
    os.remove("results/m/main/zero_shot/causal/comps/comps/predictions.json")
    os.makedirs("data/fast_eval/supplement_fast")
    shutil.copy("data/full_eval/supplement_filtered/turn_taking.jsonl", "data/fast_eval/supplement_fast")
    assert scored() == [["main", "comps"], ["chck_1M", "supplement_fast"], ["chck_20M", "supplement_fast"]]
    shutil.copy("run/ckpt.pt", "run/chck_1M.pt")  # trained again
    assert scored() == [["chck_1M", folder] for folder in ("blimp_fast", "supplement_fast", "ewok_fast")]
    (work / "results/m/scores.json").write_text('{"main": ')
    with pytest.raises(UserError, match="scores.json: is damaged"):
        scored()


def test_a_tie_is_decided_by_a_coin():
    scores = [torch.tensor([1.0, 1.0]).numpy()] * 200 + [torch.tensor([1.0, 2.0, 0.0]).numpy()]
    chosen, ties = babylm.choose(scores)
    assert ties == 200 and chosen[-1] == 1 and 60 < sum(chosen[:-1]) < 140 and babylm.choose(scores) == (chosen, ties)


def test_accuracy_is_a_mean_of_means():
    def items(*parts):
        return [babylm.Item(part, [], []) for part in parts]

    assert babylm.accuracy("blimp", items("a", "a", "a", "b"), [0, 0, 1, 1]) == pytest.approx((2 / 3 + 0) / 2)
    parts = items("regular_0_ops", "regular_1_ops", "move_contents_0_ops")
    assert babylm.accuracy("entity_tracking", parts, [0, 1, 0]) == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize("line", ["{", "[1]", '{"Domain": "x"}', "7", ""])
def test_a_broken_line_is_named(line, work):
    with open("data/full_eval/ewok_filtered/social.jsonl", "a", encoding="utf-8") as f:
        f.write(line + "\n")
    with pytest.raises(UserError, match="social.jsonl:2: not an item of ewok"):
        babylm.score("run", "m", "data", "results", device="cpu")


# --- the check


def whole_submission():
    def rows(number):
        return {"predictions": [{"id": i, "pred": 0} for i in range(number)]}

    tree = {task: {part: rows(size) for part, size in sizes.items()} for task, sizes in submission.SIZES.items()}
    for task, size in submission.GLOBAL_PIQA.items():
        tree[task] = {f"{task}_{i}": rows(1) for i in range(size)}
    marks = submission.revisions("strict-small")
    tree["aoa"] = {"aoa": 0.1}
    tree["aoa_surprisals"] = {"results": [{"step": mark} for mark in marks for _ in range(submission.ACQUISITION)]}
    tree["fast_eval_results"] = {task: [dict.fromkeys(parts, 0.5)] * 19 for task, parts in submission.FAST.items()}
    return tree


def test_what_a_submission_lacks_is_named(tmp_path):
    path = str(tmp_path / "all.json")

    def complaints(tree):
        (tmp_path / "all.json").write_text(json.dumps(tree))
        return submission.check(path)

    tree = whole_submission()
    assert complaints(tree) == [] and len(submission.revisions("strict")) == 28
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
        "blimp/invented: not a part of this task",
        "blimp/passive_1: 0 predictions instead of 840",
        "ewok/social-properties: 327 predictions instead of 328",
        "comps: missing",
        "reading: missing",
        "glue/rte: a prediction without `id` or `pred`",
        "global_piqa_parallel: 102 items instead of 103",
        "aoa: missing",
        "aoa_surprisals/chck_100M: 8004 words instead of 8005",
        "fast_eval_results/ewok: 0 checkpoints instead of 19",
        *(f"fast_eval_results/reading/{mark}: 2 of 2 parts missing" for mark in submission.revisions("strict-small")),
    ]
    assert len(complaints({})) == 7 + 2 + 1 + 19 + 7
    with pytest.raises(UserError, match="all.json"):
        complaints([])


# --- the command line


def test_uploads(tmp_path, monkeypatch, capfd):
    """Each revision to its branch, main first; nothing runs in a dry run, and a failure ends it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no main/m in it"):
        babylm.upload("hub/m", "me/m")
    for revision in ("chck_10M", "chck_2M", "main", "notes"):
        os.makedirs(f"hub/m/{revision}/m")
    expected = [f"hf upload me/m hub/m/{r}/m . --revision {r}" for r in ("main", "chck_2M", "chck_10M")]
    monkeypatch.setenv("PATH", "")
    babylm.main(["upload", "hub/m", "me/m", "--dry-run"])
    assert capfd.readouterr().out.splitlines() == expected
    with pytest.raises(UserError, match="`hf` is missing"):
        babylm.upload("hub/m", "me/m")
    os.mkdir("bin")
    with open("bin/hf", "w") as f:
        f.write(f"#!{sys.executable}\nimport sys\nprint(*sys.argv[1:])\nsys.exit('chck_10M' in sys.argv)\n")
    os.chmod("bin/hf", 0o755)
    monkeypatch.setenv("PATH", "bin")
    with pytest.raises(UserError, match="the upload of chck_10M failed"):
        babylm.upload("hub/m", "me/m")
    ran = [line for line in capfd.readouterr().out.splitlines() if line.startswith("upload")]
    assert ran == [line.removeprefix("hf ") for line in expected]


def test_command(work):
    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "lab.hub.babylm", *args],
            cwd=work,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    done = run("score", "run", "hub/m", "--data", "data", "--out", "results", "--device", "cpu")
    assert done.returncode == 0 and "main      blimp_filtered" in done.stdout, done.stderr
    assert "missing: run/chck_2M.pt" in done.stdout and "docs/babylm.md" in done.stdout
    refused(run("score", "none", "m", "--data", "data", "--out", "results"), "none: no such folder")
    (work / "all.json").write_text("{}")
    done = run("check", "all.json")
    assert done.returncode == 1 and "blimp: missing" in done.stdout.splitlines()
