"""sample.py: the ways to pick a token by hand, whole characters, ends of lines, mistakes."""

import io
import subprocess
import sys

from conftest import ROOT
from lab import checkpoint
from lab.files import UserError
from model import Model
import sample
from stand_ins import save_checkpoint

import pytest
import torch


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "ckpt.pt"
    save_checkpoint(path)
    return path


@pytest.fixture
def run(ckpt, capsys):
    """What the command prints, given these options."""

    def printed(*args):
        sample.main([str(ckpt), *map(str, args)])
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize(
    "ways, expected",
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [x / 0.345 for x in (0.25, 0.0625, 0.0225, 0.01)]),
        ({"repetition_penalty": 2.0}, [x / 0.75 for x in (0.25, 0.25, 0.15, 0.1)]),  # log 0.5 < 0: doubled, 0.25
    ],
    ids=str,
)
def test_ways_to_pick_by_hand(ways, expected):
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    assert sample.adjust(logits, [0], **ways).tolist() == pytest.approx(expected)


def test_same_seed_same_text(ckpt, run, monkeypatch):
    def sampled():
        monkeypatch.setattr(sys, "stdin", io.StringIO("The cat\nA dog\n"))
        return run("--prompt-file", "-", "--num-samples", 2, "--max-tokens", 5, "--seed", 7)

    first = sampled()
    assert sampled() == first and first.count("The cat") == first.count("A dog") == 2 and first.count("---") == 4


@pytest.mark.parametrize(
    "option, value, complaint",
    [
        ("--temperature", -1, "--temperature: must be 0 .. 100"),
        ("--prompt", b"\xff".decode("utf-8", "surrogateescape"), "the prompt is not UTF-8 text"),
        ("--prompt-file", "none.txt", "none.txt: cannot be read"),
        ("--device", "cuda:99", "--device cuda:99: cannot be used here"),
    ],
)
def test_mistakes(option, value, complaint, run):
    with pytest.raises(UserError, match=complaint):
        run(option, value)


@pytest.mark.parametrize("prompt", ["", " ", "The cat saw the dog. " * 100, "naïve 日本語 🙂\t"])
def test_any_prompt(prompt, run):
    """Empty, longer than the context, of characters the tokenizer never saw: printed as given, and continued."""
    out = run("--prompt", prompt, "--max-tokens", 30, "--seed", 3)
    assert out.startswith(prompt) and len(out.strip()) > len(prompt.strip())


def test_what_is_printed_of_a_line_and_its_end(ckpt, run, monkeypatch):
    """The end of a line is BOS, EOS, or a newline inside a document."""
    tok = checkpoint.load(ckpt).tokenizer
    for end in (tok.bos_id, tok.eos_id, tok.encode("a\n")[-1]):
        ids = [*tok.encode("é dog"), end, *tok.encode("More")]
        monkeypatch.setattr(Model, "generate", lambda *_, ids=ids: ((i, 0.25) for i in ids))
        assert run().replace("\n ", "\n") == "é dog\nMore\n"  # a word encoded alone begins with a space
        assert run("--stop-at-line") == "é dog\n"
        rows = run("--stop-at-line", "--probabilities").splitlines()[1:]
        assert len(rows) == ids.index(end) + 1 and {row[:8] for row in rows} == {"  0.2500"}
        assert [row[10:] for row in rows][-3:] == ["' do'", "'g'", r"'\n'"]


def test_a_closed_pipe_is_no_traceback(ckpt):
    """As of `| head -1`, while it writes without end."""
    line = [sys.executable, ROOT / "sample.py", str(ckpt), "--max-tokens", "1000000"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(20)
    process.stdout.close()
    assert process.wait(60) == 141 and b"Traceback" not in process.stderr.read()
