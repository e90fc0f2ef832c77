"""The command lines as a user types them, from no data to a score, in an empty folder."""
import json
import re
import shutil

import pytest

from conftest import ROOT, command, refused

SMALL = ["--preset", "quick", "data.pocket_words=30000", "data.validation_kb=4", "tokenizer.vocab_size=600", "model.hidden_size=32", "model.num_hidden_layers=2",
         "model.num_attention_heads=2", "model.intermediate_size=48", "model.max_position_embeddings=64", "train.max_steps=40", "train.eval_every=20", "train.device=cpu"]


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """An empty folder after prepare and train."""
    folder = tmp_path_factory.mktemp("walk")
    for script in ("prepare.py", "train.py"):
        done = command(script, *SMALL, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def ok(done):
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout


def test_prepare_says_what_it_took_and_is_up_to_date_the_second_time(walk):
    before = {p.name: p.read_bytes() for p in (walk / "data/pocket").iterdir() if p.is_file()}
    assert "up to date" in ok(command("prepare.py", *SMALL, cwd=walk))
    assert before == {p.name: p.read_bytes() for p in (walk / "data/pocket").iterdir() if p.is_file()}


def test_training_leaves_what_the_readme_names(walk):
    assert {"ckpt.pt", "last.pt", "config.yaml", "losses.csv", "curves.png"} <= {p.name for p in (walk / "out/quick").iterdir()}


def test_evaluation_takes_the_corpus_own_pairs_and_says_so(walk):
    out = ok(command("eval_blimp.py", "out/quick/ckpt.pt", "--json", "scores.json", "--plot", "bars.png", cwd=walk))
    block = dict(line.split(": ", 1) for line in out.splitlines()[-24:] if ": " in line)
    scores = json.loads((walk / "scores.json").read_text())
    assert float(block["accuracy"]) == pytest.approx(scores["accuracy"], abs=1e-4) and 0.3 < scores["accuracy"] < 1
    assert "Pocket English" in scores["corpus"] and "pocket" in out.lower() and "NOT BLIMP" in out.upper()
    assert {"accuracy_ties_half", "accuracy_ties_correct", "pairs", "ties", "paradigms", "phenomena", "fields", "checkpoint", "seconds"} <= scores.keys()
    assert len(scores["phenomena"]) == 12 and (walk / "bars.png").stat().st_size > 5000


def test_sample_and_export_and_back(walk):
    assert ok(command("sample.py", "out/quick/ckpt.pt", "--prompt", "The cat", "--max-tokens", 8, cwd=walk)).startswith("The cat")
    ok(command("export.py", "out/quick/ckpt.pt", "hf", cwd=walk))
    ok(command("export.py", "--from-hf", "hf", "back.pt", cwd=walk))
    first, back = (ok(command("sample.py", path, "--max-tokens", 12, cwd=walk)) for path in ("out/quick/ckpt.pt", "back.pt"))
    assert first == back


def test_mistakes_about_pairs(walk):
    pairs = walk / "data/pocket/pairs"
    bad = walk / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    bad.mkdir()
    refused(command("eval_blimp.py", "out/quick/ckpt.pt", "--data", "nowhere", cwd=walk), "nowhere")
    refused(command("eval_blimp.py", "out/quick/ckpt.pt", "--data", "bad", cwd=walk), "bad")
    name = sorted(p.name for p in pairs.iterdir())[0]
    text = (pairs / name).read_bytes()
    (bad / name).write_bytes(text[:len(text) // 2])                     # ends in the middle of a line
    refused(command("eval_blimp.py", "out/quick/ckpt.pt", "--data", "bad", cwd=walk), f"bad/{name}:")
    refused(command("eval_blimp.py", "out/quick/tokenizer.pt", cwd=walk), "out/quick/tokenizer.pt", "no such file")


def test_a_missing_paradigm_is_an_error_unless_asked_for(walk):
    blimp = walk / "blimp"
    blimp.mkdir(exist_ok=True)
    for uid in ("wh_island", "passive_1"):
        pairs = [{"sentence_good": f"The cat saw dog {i}.", "sentence_bad": f"The cat dog saw {i}.", "UID": uid, "pairID": str(i)} for i in range(20)]
        (blimp / f"{uid}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    args = ("eval_blimp.py", "out/quick/ckpt.pt", "--data", "blimp", "--json", "part.json")
    refused(command(*args, cwd=walk), "65 of BLiMP's 67 paradigms are missing", "--allow-incomplete")
    assert not (walk / "part.json").exists()
    assert "incomplete: true" in ok(command(*args, "--allow-incomplete", cwd=walk)).lower()
    assert json.loads((walk / "part.json").read_text())["incomplete"] is True


def test_mistakes_about_text(walk):
    texts = walk / "texts"
    shutil.rmtree(texts, ignore_errors=True)
    texts.mkdir()

    def prepare(*overrides):
        return command("prepare.py", *SMALL, "data.name=mine", "data.source=texts", *overrides, cwd=walk)
    refused(command("prepare.py", *SMALL, "data.source=missing", "data.name=mine", cwd=walk), "missing")
    refused(prepare(), "texts")
    (texts / "a.txt").write_bytes(b"")
    refused(prepare(), "a.txt")
    (texts / "a.txt").write_bytes(bytes(range(256)) * 500)
    refused(prepare(), "a.txt")
    (texts / "a.txt").write_bytes("Ein schöner Satz.\n".encode("latin-1") * 500)
    refused(prepare(), "a.txt", "UTF-8")
    (texts / "a.txt").write_text("".join(f"The cat saw dog number {i} near a small house.\n" for i in range(1000)))
    refused(prepare("tokenizer.vocab_size=20000"), "tokenizer.vocab_size", "largest possible")
    refused(prepare("data.sources=[b]"), "data.sources", "a")


def test_every_python_command_of_the_readme_parses():
    """Each `python X.py ...` in README names a script and settings that exist."""
    import config
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"python ((?:bench/)?\w+\.py)([^`\n#|]*)", readme)
    assert len(commands) >= 8
    for script, rest in commands:
        assert (ROOT / script).exists(), script
        words = rest.split()
        preset = words[words.index("--preset") + 1] if "--preset" in words else None
        config.load_config(preset, [w for w in words if re.match(r"(data|tokenizer|model|train|eval)\.\w+=", w)], str(ROOT / "config.yaml"))
