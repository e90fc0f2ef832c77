"""Surprisal of words: by hand, as transformers computes it from an exported model, as minicons does; the command."""

import math
import pathlib
import re

import eval_blimp
import export
from lab import checkpoint
from lab.files import UserError
from lab.score import surprisal
from lab.score.scorers import Ours, load_scorer
from stand_ins import History, Words, by_hand, load_csv, plainly, uniform
from test_eval_blimp import blimp

import numpy as np
import pytest
import torch

LINES = ["the boy sees the old dog.", "", "  Two  spaces, and 42 cups ", "\tthe naïve girl: 🙂 ran", "x"]


def words_of(model, tokenizer, lines, **options):
    return surprisal.word_surprisals(Ours(model, tokenizer), lines, eval_blimp.score_tokens, **options)


def bits_of(rows):
    return [row.surprisal for row in rows]


def test_by_hand():
    bits = [-by_hand(History(), [1, 3, 4, 5][: n + 1], n) / math.log(2) for n in (1, 2, 3)]
    rows = words_of(History(), Words(), ["", "a b c"])
    assert rows[1] == surprisal.Word(sentence=2, position=2, word="b", tokens=1, surprisal=rows[1].surprisal, window=1)
    assert bits_of(rows) == pytest.approx(bits, abs=1e-5)


def test_words_of_a_line_add_up_to_its_score(workplace):
    """Every word as it is in the text, every token in one word, and the sum of the bits is the line's score."""
    model, ckpt = checkpoint.load_model("0.pt")
    rows = words_of(model, ckpt.tokenizer, LINES)
    scores = plainly(model, ckpt.tokenizer, LINES)
    for number, (line, score) in enumerate(zip(LINES, scores.tolist()), 1):
        of_line = [row for row in rows if row.sentence == number]
        assert [row.word for row in of_line] == line.split()
        assert [row.position for row in of_line] == list(range(1, len(of_line) + 1))
        assert sum(row.tokens for row in of_line) == len(ckpt.tokenizer.encode(line))
        assert sum(bits_of(of_line)) == pytest.approx(-score / math.log(2), abs=1e-3)


def test_transformers_computes_the_same(workplace):
    """Log-probabilities of the exported model, summed over the tokens whose offsets end in the word."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export.export_folder("0.pt", "hf")
    hf, tok = AutoModelForCausalLM.from_pretrained("hf"), AutoTokenizer.from_pretrained("hf")
    model, ckpt = checkpoint.load_model("0.pt")
    for line in (LINES[0], LINES[2], "the naïve girl: 🙂 ran"):
        encoded = tok(line, return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]])
        with torch.no_grad():
            logp = hf(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        rows = words_of(model, ckpt.tokenizer, [line])
        word_ends = [word.end() for word in re.finditer(r"\S+", line)]
        bits = [0.0] * len(rows)
        for (_, end), value in zip(encoded["offset_mapping"][1:], logp.tolist()):
            word = min(int(np.searchsorted(word_ends, end)), len(rows) - 1)
            bits[word] -= value / math.log(2)
        assert bits_of(rows) == pytest.approx(bits, abs=1e-3)


@pytest.mark.parametrize("whitespace", ["leading", "trailing"])
@pytest.mark.parametrize("kind", ["gpt2", "pythia", "opt", "export of ours"])
def test_minicons_computes_the_same(workplace, strangers, kind, whitespace):
    """Its figures of a word's tokens add up to ours, corrected ones (its bow_correction) to those of `trailing`.

    (Not by its words: it encodes each of them alone, which a tokenizer with a space in front of every text does
    differently. It adds no BOS that the tokenizer adds by itself.)
    """
    minicons = pytest.importorskip("minicons.scorer")
    if kind == "export of ours":
        export.export_folder("0.pt", "hf")
    folder = strangers.get(kind, "hf")
    lines = ["The old dog sees a cup.", "the cats sleep", "Who did Ella rescue near the singers?", "a", "naïve girls"]
    rows = surprisal.word_surprisals(load_scorer(folder), lines, eval_blimp.score_tokens, whitespace)
    theirs = minicons.IncrementalLMScorer(folder, "cpu").token_score(
        lines,
        bos_token=kind in ("gpt2", "pythia"),
        surprisal=True,
        base_two=True,
        bow_correction=whitespace == "trailing",
    )
    for number, tokens in enumerate(theirs, 1):
        of_line = [row for row in rows if row.sentence == number]
        bits = [value for _, value in tokens][1:]  # the first is BOS, with a 0
        ends = np.cumsum([row.tokens for row in of_line])
        assert ends[-1] == len(bits)
        sums = [sum(part) for part in np.split(bits, ends[:-1])]
        assert bits_of(of_line) == pytest.approx(sums, abs=1e-4)


def test_the_command(workplace, capsys):
    pathlib.Path("text.txt").write_bytes("\r\n".join(LINES).encode("utf-8-sig"))
    blimp("0.pt --surprisal text.txt --csv o/words.csv")
    out = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    rows = load_csv("o/words.csv")
    assert list(rows[0]) == ["sentence", "position", "word", "tokens", "surprisal", "window"]
    assert [row["word"] for row in rows] == " ".join(LINES).split() and rows[-1]["sentence"] == "5"
    assert out["words"] == str(len(rows)) and out["sentences"] == "4" and out["checkpoint"] == "0.pt"
    assert float(out["bits_per_word"]) == pytest.approx(np.mean([float(row["surprisal"]) for row in rows]), abs=1e-5)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("0.pt --surprisal text.txt", "--surprisal: give --csv"),
        ("0.pt --surprisal text.txt --csv o.csv --json r.json", "--json: goes with pairs"),
        ("0.pt --surprisal no.txt --csv o.csv", "no.txt.*No such file"),
        ("0.pt --surprisal empty.txt --csv o.csv", "empty.txt: no sentence"),
        ("0.pt 1.pt --surprisal text.txt --csv o.csv", "takes one model"),
    ],
)
def test_mistakes(workplace, line, reason):
    pathlib.Path("text.txt").write_text("the boy\n")
    pathlib.Path("empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match=reason):
        blimp(line)
    assert not pathlib.Path("o.csv").exists()


def test_a_token_that_ends_in_the_next_word():
    """As a tokenizer may have that merges across spaces: the first word has no token of its own, and no bits."""

    class Merging(Words):
        byte_lengths = np.array([1, 0, 0, 4, 2, 2, 2, 2, 2, 2, 2])

        def encode_batch(self, texts):
            return [[3, 4] for _ in texts]  # " a b" in one token, then " c"

    first, second, third = words_of(uniform(), Merging(), ["a b c"])
    assert first.tokens == 0 and second.tokens == 1 and third.tokens == 1 and first.surprisal == 0


def test_a_line_longer_than_the_context_is_scored_in_overlapping_windows(workplace):
    """Each token once, given at least half a context before it; a short line beside it scores as it does alone."""
    model, ckpt = checkpoint.load_model("0.pt")
    long = "the cup of the boy sees " * 20
    rows = words_of(model, ckpt.tokenizer, [LINES[0], long])
    short, mine = ([row for row in rows if row.sentence == number] for number in (1, 2))
    assert [row.word for row in mine] == long.split()
    ids = ckpt.tokenizer.encode(long)
    assert sum(row.tokens for row in mine) == len(ids) > 32 and min(bits_of(mine)) > 0
    numbers = [row.window for row in mine]
    assert numbers == sorted(numbers) and numbers[0] == 1 and numbers[-1] > 1
    assert bits_of(short) == pytest.approx(bits_of(words_of(model, ckpt.tokenizer, LINES[:1])), abs=1e-4)
    scorer = Ours(model, ckpt.tokenizer)
    done = 0
    for window in surprisal.windows(scorer, *scorer.encode([long]), len(ids), room_for_next=False):
        assert window.ids[0] == ckpt.tokenizer.bos_id and scorer.given(window) <= scorer.context == 32
        assert list(window.ids[window.first : window.end]) == ids[done : done + window.end - window.first]
        assert done == 0 or window.first > 16
        done += window.end - window.first
    assert done == len(ids)


def test_the_space_after_a_word(workplace):
    """What a word gains the next one loses: with the space after it, p of a word is a probability."""
    model, ckpt = checkpoint.load_model("0.pt")
    line = LINES[0]
    before, after = (words_of(model, ckpt.tokenizer, [line], whitespace=w) for w in ("leading", "trailing"))
    ids = [ckpt.tokenizer.bos_id, *ckpt.tokenizer.encode(line)]
    begins = [ckpt.tokenizer.sp.id_to_piece(i).startswith("\u2581") for i in range(ckpt.tokenizer.vocab_size)]
    with torch.no_grad():
        p = model(torch.tensor([ids]))[0].softmax(-1)[:, torch.tensor(begins)].sum(-1).tolist()
    at = 0
    for number, (one, other) in enumerate(zip(before, after)):
        start, at = at, at + one.tokens
        expected = one.surprisal - math.log2(p[at]) + (math.log2(p[start]) if number else 0)
        assert other.surprisal == pytest.approx(expected, abs=1e-3)
    export.export_folder("0.pt", "hf")  # which spells spaces as they are
    exported = surprisal.word_surprisals(load_scorer("hf"), [line], eval_blimp.score_tokens, "trailing")
    assert bits_of(exported) == pytest.approx(bits_of(after), abs=1e-4)
