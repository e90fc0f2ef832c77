"""The rule, accuracies of models that can be worked out by hand, and the command with all that can go wrong."""

import json
import math
import pathlib

from conftest import ROOT, command, refused
import eval_blimp
from lab import checkpoint
from lab.files import UserError, sealed
from lab.score import pairs, scoring, statistics
from lab.score.scorers import Ours
from stand_ins import History, Table, V, Words, by_hand, load_csv, load_json, pair, plainly, read, score, uniform, write

import numpy as np
import pytest
import torch


def evaluated(model, files, tmp_path, **options):
    return eval_blimp.evaluate(Ours(model, Words()), read(tmp_path / "pairs", files), **options)


# ------------------------------------------------------------------------------------------------------ the rule


def test_the_rule_by_hand():
    """Sentences of several lengths in one batch: each has the sum over its own tokens, and no others."""
    texts = ["a b c", "a", "h g f e d"]
    scores = plainly(uniform(), Words(), texts)
    assert scores.tolist() == pytest.approx([-n * math.log(V) for n in (3, 1, 5)])
    scores = plainly(History(), Words(), texts)
    expected = [by_hand(History(), [1, *ids], 1) for ids in Words().encode_batch(texts)]
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_uniform_model_and_the_three_views_of_a_tie(tmp_path):
    """It prefers the shorter sentence, and ties where both are as long: counted as correct, ties look like grammar."""
    rows = {
        "one": [pair("a", "a b"), pair("a b", "c d"), pair("a b c", "d e f"), pair("a b c", "d e")],
        "two": [pair("a", "b")],
    }
    result = evaluated(uniform(), rows, tmp_path)
    assert result.views["strict"] == result.overall.accuracy == pytest.approx((1 / 4 + 0) / 2)
    assert result.views["ties_half"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert result.views["ties_correct"] == pytest.approx((3 / 4 + 1) / 2)
    assert result.views["micro"] == pytest.approx(1 / 5)
    assert result.overall.pairs == 5 and result.overall.ties == 3
    one = result.paradigms["one"]
    assert one.accuracy == 0.25 and one.pairs == 4 and one.ties == 2 and one.margin == pytest.approx(0)
    assert one.interval == pytest.approx(statistics.wilson(1, 4))
    assert "3 ties in 5 pairs" in result.warnings[0] and not result.incomplete
    assert result.correct.tolist() == [True, False, False, False, False]
    assert result.tokens.tolist() == [[1, 2], [2, 2], [3, 3], [3, 2], [1, 1]]
    lenient = evaluated(uniform(), rows, tmp_path, ties_correct=True)
    assert lenient.overall.accuracy == result.views["ties_correct"]
    tossed = evaluated(uniform(), rows, tmp_path, ties_half=True)
    assert tossed.overall.accuracy == result.views["ties_half"]
    assert tossed.accuracy_range == [result.views["strict"], result.views["ties_correct"]]


def test_the_mean_per_token(tmp_path):
    """A longer sentence of likelier tokens: its mean is higher, its sum is lower."""
    table = np.zeros((V, V))
    table[3, 4] = 5  # after a, b is nearly sure
    rows = [pair("a b a b a b a b", "a c"), pair("c", "a b")]
    result = evaluated(Table(table), {"p": rows}, tmp_path)
    means = result.scores / result.tokens
    assert (means[:, 0] > means[:, 1]).tolist() == [True, False]
    assert result.correct.tolist() == [False, True] and result.views["mean_per_token"] == 0.5


def test_a_coin_decides_a_tie(tmp_path):
    """In the decisions, that is: half of many ties, the same ones each time; anything else is left alone."""
    rows = [pair("a", "a a"), pair("a a", "a")] + [pair("a b", "c d")] * 1000
    coins = [evaluated(uniform(), {"p": rows}, tmp_path, ties_half=True).correct for _ in range(2)]
    assert coins[0].dtype == bool and coins[0][:2].tolist() == [True, False] and (coins[0] == coins[1]).all()
    assert 450 < coins[0].sum() < 550


def test_identical_pairs_tie_and_are_no_sign_of_a_broken_model(tmp_path):
    rows = [pair("a b", "b a"), pair("b b a", "b b a"), pair("c a b", "a c b")]
    result = evaluated(History(), {"p": rows}, tmp_path)
    assert result.overall.ties == result.identical_pairs == 1 and result.warnings == []


def test_dev_and_test(tmp_path):
    """A model that is correct on every pair whose id ends in 0, and on no other."""
    rows = [pair("a", "a a", pairID=str(i)) if i % 10 == 0 else pair("a a", "a", pairID=str(i)) for i in range(40)]
    result = evaluated(uniform(), {"p": rows}, tmp_path)
    assert result.overall.accuracy == 0.1 and result.views["dev"] == 1 and result.views["test"] == 0
    folder = str(tmp_path / "pairs")
    assert eval_blimp.quick_accuracy(uniform(), Words(), folder, 2) == 1.0


def test_groups(tmp_path):
    """Paradigms go by UID, whichever files their pairs are in, and else by the file's name."""
    fields = {"linguistics_term": "s-selection", "field": "syntax/semantics"}
    respelled = {"linguistics_term": "argument_structure", "field": "syntax_semantics"}
    rows = {
        "x": [pair("a", "a a", UID="u", **fields), pair("a", "b", UID="v", **respelled)],
        "y": [pair("a", "a a", phenomenon="other"), pair("a", "b", UID="u", **fields)],
    }
    result = evaluated(uniform(), rows, tmp_path)
    assert {uid: group.accuracy for uid, group in result.paradigms.items()} == {"u": 0.5, "v": 0, "y": 1}
    assert result.phenomena.keys() == {"argument_structure", "other"} and result.fields.keys() == {"syntax_semantics"}
    structure = result.phenomena["argument_structure"]
    assert structure.accuracy == 1 / 4 and structure.paradigms == 2 and result.fields["syntax_semantics"].pairs == 3
    assert result.views["phenomena"] == 5 / 8 and result.views["fields"] == 1 / 4
    assert result.overall.accuracy == pytest.approx(1.5 / 3)


def test_too_long_pairs_are_left_out_and_said(tmp_path):
    model = uniform()
    model.cos = torch.zeros(2, 1)
    result = evaluated(model, {"p": [pair("a", "a b"), pair("a b c", "a")]}, tmp_path)
    assert result.incomplete and len(result.pairs) == 1
    assert "1 pairs left out: longer than the context of 2" in result.warnings[0]
    model.cos = torch.zeros(1, 1)
    with pytest.raises(UserError, match="no pair fits"):
        evaluated(model, {"p": [pair("a a", "a b")]}, tmp_path)


# ------------------------------------------------------------------------------------------------------ the command


def blimp(line):
    eval_blimp.main(line.split())


@pytest.mark.slow
def test_all_outputs_agree(workplace, capsys):
    blimp("0.pt --data mine --compare 1.pt --json o/r.json --csv o/p.csv --predictions o/b.json --plot o/p.png")
    out = capsys.readouterr().out
    result = load_json("o/r.json")
    block = dict(line.split(": ", 1) for line in out.splitlines()[-20:] if ": " in line)
    assert float(block["accuracy"]) == pytest.approx(result["accuracy"], abs=1e-6)
    assert block["pairs"] == "90" and block["corpus"] == "tiny test corpus"
    both = set("accuracy accuracy_ties_half pairs ties paradigms corpus checkpoint seconds incomplete".split())
    assert block.keys() >= both | {"data", "benchmark", "rule"}
    assert result.keys() >= both | {"accuracy_ties_correct", "phenomena", "fields"}
    assert result["paradigms"]["beta"].keys() >= {"accuracy", "pairs", "ties", "interval"}
    assert max(map(len, out.splitlines())) <= 100 and "not BLiMP" in out and "warning" not in out
    assert result["sha256"].keys() == {"checkpoint", "tokenizer", "data"}
    assert result["sha256"]["checkpoint"] == checkpoint.file_sha256("0.pt")
    asked_for_nothing = dict.fromkeys(["compat", "max_pairs_per_paradigm", "good", "bad", "group"])
    assert result["conventions"] == eval_blimp.RULE | asked_for_nothing | {"dtype": "float32", "split": "all"}

    rows = load_csv("o/p.csv")
    assert {row["checkpoint"] for row in rows} == {result["sha256"]["checkpoint"][:16]}
    assert {row["rule"] for row in rows} == {"strict"}
    accuracies = [np.mean([int(r["right"]) for r in rows if r["uid"] == uid]) for uid in ("alpha", "beta", "gamma")]
    assert len(rows) == 90 and np.mean(accuracies) == pytest.approx(result["accuracy"])
    assert {row["split"] for row in rows} == {""} and result["accuracy_dev"] is None  # those parts are BLiMP's alone
    model, ckpt = checkpoint.load_model("0.pt")
    scores = plainly(model, ckpt.tokenizer, [r["good"] for r in rows])
    assert [float(r["score_good"]) for r in rows] == pytest.approx(scores.tolist(), abs=1e-4)
    chosen = load_json("o/b.json")
    assert [p["id"] for p in chosen["beta"]["predictions"]] == [f"beta_{i}" for i in range(30)]
    sentences = [p["pred"] for paradigm in chosen.values() for p in paradigm["predictions"]]
    assert sentences == [r["good"] if r["right"] == "1" else r["bad"] for r in rows]
    png = pathlib.Path("o/p.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and result["sha256"]["data"].encode() in png

    comparison = result["comparison"]
    assert comparison["with"] == "1.pt" and "McNemar" in out
    blimp("1.pt --data mine --csv other.csv")
    decisions = [ours["right"] + other["right"] for ours, other in zip(rows, load_csv("other.csv"))]
    assert comparison["gained"] == decisions.count("10") and comparison["lost"] == decisions.count("01")
    assert comparison["changed"] == comparison["gained"] + comparison["lost"] > 0


def test_an_existing_result_is_replaced_only_when_asked(workplace, monkeypatch):
    pathlib.Path("r.json").write_text("somebody else's")
    pathlib.Path("text.txt").write_text("the boy")
    with monkeypatch.context() as patched:
        patched.setattr(eval_blimp, "load_scorer", lambda *_: pytest.fail("loaded"))
        for line in ("0.pt --data mine --json r.json", "0.pt --surprisal text.txt --csv r.json"):
            with pytest.raises(UserError, match="r.json: exists; choose another name, or add --replace"):
                blimp(line)
    assert pathlib.Path("r.json").read_text() == "somebody else's"
    blimp("0.pt --data mine --json r.json --replace")
    assert load_json("r.json")["pairs"] == 90


def test_learning_curve(workplace, monkeypatch, capsys):
    """Several checkpoints: a table of them, all in the JSON, and the plot's lines are their accuracies."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **how: figures.append(figure))
    blimp("0.pt 1.pt --data mine --json r.json --plot curve.png --paradigms")
    last = load_json("r.json")
    first, second = last["checkpoints"]
    assert first["words"] == 1000 and second["words"] == 2000
    assert last["checkpoint"] == "1.pt" and last["accuracy"] == second["accuracy"]
    out = capsys.readouterr().out
    assert "words seen" in out and "alpha" in out

    lines = {line.get_label(): line for line in figures[0].axes[0].get_lines()}
    binding, mean = lines["binding"], lines["mean over paradigms"]
    assert list(binding.get_xdata()) == list(mean.get_xdata()) == [0.001, 0.002]
    assert list(binding.get_ydata()) == [100 * r["phenomena"]["binding"]["accuracy"] for r in (first, second)]
    assert list(mean.get_ydata()) == [100 * first["accuracy"], 100 * second["accuracy"]]


@pytest.mark.parametrize(
    "flags, leading_space, rule",
    [
        ("--compat babylm-2025", False, "ties_correct=True compat=babylm-2025"),
        ("--compat babylm-2026", False, "ties_half=True compat=babylm-2026"),
        ("--compat babylm", False, "ties_half=True compat=babylm-2026"),
        ("--compat lm-eval", True, "leading_space=True ties_correct=True compat=lm-eval"),
        ("--split dev", False, "split=dev"),
    ],
)
def test_other_rules(workplace, capsys, flags, leading_space, rule):
    blimp(f"0.pt --data mine --csv p.csv --json r.json {flags}")
    model, ckpt = checkpoint.load_model("0.pt")
    rows = load_csv("p.csv")
    expected = score(model, [" " * leading_space + row["good"] for row in rows], ckpt.tokenizer)
    assert [float(row["score_good"]) for row in rows] == pytest.approx(expected, abs=1e-4)
    out = capsys.readouterr().out
    assert f"rule: {rule}\n" in out
    assert ("--compat babylm means babylm-2026" in out) == flags.endswith("babylm")
    assert ("accuracy_range" in load_json("r.json")) == ("accuracy_range: " in out) == ("ties_half" in rule)


def test_bfloat16_is_said(workplace, capsys):
    blimp("0.pt --data mine --dtype bfloat16")
    assert "rule: dtype=bfloat16\n" in capsys.readouterr().out


def test_which_data_is_scored(workplace, capsys):
    blimp("0.pt eval.data=mine")
    assert "90 pairs of mine (eval.data)" in capsys.readouterr().out
    with pytest.raises(UserError, match="data/blimp: no minimal pairs there, nor in data/tiny/pairs"):
        blimp("0.pt")
    (workplace / "data" / "own").mkdir()
    write(workplace / "data" / "own" / "pairs", {"p": [pair("the cup.", "cup the.")]})
    (workplace / "data" / "own" / "meta.json").write_text(json.dumps(sealed({"source": "pocket"})))
    tree = checkpoint.read("0.pt")
    tree["provenance"]["data"]["name"] = "own"
    checkpoint.save("out/sllama/ckpt.pt", tree)
    eval_blimp.main([])  # the preset's checkpoint, its own corpus's pairs
    out = capsys.readouterr().out
    assert "benchmark: POCKET ENGLISH PAIRS, NOT BLiMP" in out
    assert f"data: {pathlib.Path('data/own/pairs')}" in out


@pytest.mark.parametrize(
    "line, reason",
    [
        ("missing.pt --data mine", "missing.pt.*No such file"),
        ("0.pt --data mine --max-pairs-per-paradigm 0", "--max-pairs-per-paradigm"),
        ("0.pt --data mine --compare o.pt", "o.pt"),
        ("0.pt --data mine --pll l2r", "--pll: goes with masked models"),
        ("0.pt evil.data=mine", "eval"),
        ("0.pt --data mine --plot p.gif", r"--plot p.gif: give a name that ends in .png"),
    ],
)
def test_mistakes(workplace, line, reason):
    with pytest.raises(UserError, match=reason) as e:
        blimp(line)
    assert "\n" not in str(e.value)


def test_a_missing_paradigm_is_an_error_unless_asked_for(workplace, capsys):
    data = write(workplace / "part", {"wh_island": [pair("the cup.", "cup the.", UID="wh_island")]})
    line = f"0.pt --data {data} --json part.json"
    with pytest.raises(UserError, match="66 of BLiMP's 67 paradigms are missing.*--allow-incomplete"):
        blimp(line)
    assert not pathlib.Path("part.json").exists()
    blimp(f"{line} --allow-incomplete eval.blimp_pairs=1")  # a setting may follow an option
    assert "incomplete: true" in capsys.readouterr().out and load_json("part.json")["incomplete"] is True


def test_outputs_that_cannot_be_written_are_found_before_scoring(workplace, monkeypatch):
    monkeypatch.setattr(eval_blimp, "evaluate_models", lambda *_: pytest.fail("scored"))
    for flag, path in (("--json", "0.pt/r.json"), ("--csv", "mine"), ("--plot", "0.pt/p.png"), ("--html", "0.pt/x/p")):
        with pytest.raises(UserError, match=f"{path}: cannot be written"):
            eval_blimp.main(["0.pt", "--data", "mine", flag, path])


def test_different_contexts_are_refused_and_nothing_is_written(workplace):
    tree = checkpoint.read("0.pt")
    tree["model"]["max_position_embeddings"] = 6
    checkpoint.save("short.pt", tree)
    for flags in (["--compare", "short.pt"], ["short.pt", "--html", "page.html"]):
        with pytest.raises(UserError, match="the models have different contexts"):
            eval_blimp.main(["0.pt", *flags, "--data", "mine", "--json", "r.json"])
        assert not (workplace / "page.html").exists() and not (workplace / "r.json").exists()


@pytest.mark.slow
def test_as_a_user_types_it(workplace):
    """The output, the error, and that nothing is imported that only a picture or a model of others needs."""
    env = {"PYTHONPROFILEIMPORTTIME": "1"}
    line = "0.pt --data mine --max-pairs-per-paradigm 5".split()
    done = command("eval_blimp.py", *line, cwd=workplace, env=env)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "checkpoint: 0.pt"
    said = done.stderr.splitlines()
    assert all(text.startswith("import time:") for text in said)
    assert {text.split()[-1] for text in said}.isdisjoint({"matplotlib", "lab.report.plots", "transformers"})
    (workplace / "mine" / "beta.jsonl").write_text(json.dumps(pair("a", "b")) + "\n{broken")
    refused(command("eval_blimp.py", *line, "--json", "r.json", cwd=workplace), "beta.jsonl:2")
    assert not (workplace / "r.json").exists()


# ------------------------------------------------------------------------------------------------------ BLiMP itself

SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not (SHARED / "blimp_filtered").is_dir(), reason="needs BabyLM's filtered BLiMP beside the project")
def test_a_uniform_model_is_worth_91_9_where_ties_are_correct():
    """What is published as 91.94 is what a model gets that knows nothing but the number of tokens."""
    from tokenizer import load

    filtered, info = pairs.read_pairs(str(SHARED / "blimp_filtered"))
    assert info["warnings"] == [] and len(filtered) == 59875
    tok = load(SHARED / "llama_tokenizer" / "tokenizer.model")
    sequences = scoring.tokenize(tok, [text for p in filtered for text in (p["good"], p["bad"])])
    tokens = np.array([len(ids) for ids in sequences]).reshape(-1, 2)
    result = statistics.summarize(filtered, -math.log(32000) * tokens, tokens, tokens[:, 0] < tokens[:, 1])
    assert result.views["ties_correct"] == pytest.approx(0.91944, abs=1e-5)
    assert result.views["ties_half"] == pytest.approx(0.514, abs=1e-3)
    assert result.overall.accuracy == pytest.approx(0.109, abs=1e-3)
