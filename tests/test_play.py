"""What the page to play with shows, computed without its server; tests/test_browser.py clicks on it."""

import math
import sys

from conftest import ROOT
import eval_blimp
from lab import play
from lab.files import UserError
from lab.score.scorers import load_scorer

import pytest
import torch

SENTENCES = ["The old dogs sleep in the sun.", "The old dogs sleeps: 🙂 and é."]


@pytest.fixture(scope="module", params=["llama-3m", "gpt2", "bert"])
def model(request, strangers):
    return load_scorer(strangers.get(request.param, ROOT / "models" / "llama-3m.pt"))


@pytest.fixture(scope="module")
def ours():
    return load_scorer(ROOT / "models" / "llama-3m.pt")


def test_tokens_spell_the_sentence_and_add_up_to_its_score(model):
    scores = eval_blimp.score(model, SENTENCES, model.encode(SENTENCES))
    for sentence, score in zip(SENTENCES, scores):
        texts, bits = zip(*play.surprisals(model, sentence))
        assert "".join(texts).replace("·", "") == sentence
        assert -sum(bits) * math.log(2) == pytest.approx(score, abs=1e-4)


def test_the_verdict(ours):
    less, more = [("a", 1.0), ("b", 2.5)], [("a", None), ("b", 4.25)]
    first = "**The first sentence wins**: 3.50 and 4.25 bits in all, 0.75 bits apart."
    assert play.verdict(ours, less, more) == first
    assert play.verdict(ours, more, less).startswith("**The second sentence wins**: 4.25")
    assert play.verdict(ours, more, more).startswith("**A tie**, neither sentence wins: 4.25")


def test_a_look_at_a_token(ours):
    """Before "dogs": what the model finds likeliest after "The old", and a text that begins so."""
    expected, text = play.look(ours, SENTENCES[0], 2, likeliest=5)
    ids = [ours.tokenizer.bos_id, *ours.tokenizer.encode("The old")]
    with torch.no_grad():
        top = ours.model(torch.tensor([ids]))[0, -1].softmax(-1).topk(5)
    assert list(expected.values()) == pytest.approx(top.values.tolist())
    texts = [ours.decode([*ids, token]).removeprefix("The old") for token in top.indices.tolist()]
    assert list(expected) == [text.strip() if text.startswith(" ") else "-" + text for text in texts]
    assert text.startswith("The old ") and len(text) > len("The old ")
    inside, _ = play.look(ours, SENTENCES[0], 3)  # of "do" and "gs"
    start, text = play.look(ours, SENTENCES[0], 0)
    assert "-gs" in inside and "The" in start and text


def test_a_look_at_another_causal_model(strangers):
    gpt2 = load_scorer(strangers["gpt2"])
    expected, text = play.look(gpt2, "The old dogs", 1)
    assert len(expected) == 10 and text.startswith("The")
    ids = gpt2.encode(["a" * 200])[0].ids[: gpt2.context]  # the last place in the model's context is looked at
    _, text = play.look(gpt2, gpt2.decode(ids[1:]), len(ids) - 1)
    assert text == gpt2.decode(ids[1:])
    gpt2.begin_as_its_tokenizer_does()  # it puts nothing there
    assert play.surprisals(gpt2, "The old dogs")[0][1] is None
    with pytest.raises(UserError, match="nothing stands before the first word; click on a later one"):
        play.look(gpt2, "The old dogs", 0)


def test_mistakes(ours, strangers, monkeypatch):
    with pytest.raises(UserError, match="there is no sentence"):
        play.surprisals(ours, " ")
    with pytest.raises(UserError, match="context of 256 tokens"):
        play.surprisals(ours, "a dog " * 300)
    with pytest.raises(UserError, match="a masked model also reads what follows"):
        play.look(load_scorer(strangers["bert"]), "The old dogs", 1)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="needs the package gradio: pip install gradio"):
        play.main([str(ROOT / "models" / "llama-3m.pt")])
