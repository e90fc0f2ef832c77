"""What the page to play with shows, computed without its server; tests/test_browser.py clicks on it."""

import math
import sys

from conftest import ROOT
import eval_blimp
from lab import play
from lab.files import UserError
from lab.score.scorers import load_scorer
import strangers

import pytest
import torch

SENTENCES = ["The old dogs sleep in the sun.", "The old dogs sleeps: 🙂 and é."]


@pytest.fixture(scope="module")
def ours():
    return load_scorer(ROOT / "models" / "llama-3m.pt")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strangers")
    return {kind: strangers.make(kind, folder / kind) for kind in ("gpt2", "bert")}


@pytest.fixture(params=["ours", "gpt2", "bert"])
def model(request, ours, folders):
    return ours if request.param == "ours" else load_scorer(folders[request.param])


def test_tokens_spell_the_sentence_and_add_up_to_its_score(model):
    scores = eval_blimp.score(model, SENTENCES, model.encode(SENTENCES))
    for sentence, score in zip(SENTENCES, scores):
        tokens = play.surprisals(model, sentence)
        assert "".join(text for text, _ in tokens).replace("·", "") == sentence
        assert -sum(bits for _, bits in tokens) * math.log(2) == pytest.approx(score, abs=1e-4)


def test_the_verdict(ours):
    tokens = {"less": [("a", 1.0), ("b", 2.5)], "more": [("a", None), ("b", 4.25)]}
    assert play.verdict(ours, tokens["less"], tokens["more"]) == (
        "**The first sentence wins**: 3.50 and 4.25 bits in all, 0.75 bits apart."
    )
    assert play.verdict(ours, tokens["more"], tokens["less"]).startswith("**The second sentence wins**: 4.25")
    assert play.verdict(ours, tokens["more"], tokens["more"]).startswith("**A tie**, neither sentence wins: 4.25")


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
    assert "-gs" in inside
    start, text = play.look(ours, SENTENCES[0], 0)
    assert "The" in start and text


def test_a_look_at_another_causal_model(folders):
    model = load_scorer(folders["gpt2"])
    expected, text = play.look(model, "The old dogs", 1, longest=5)
    assert len(expected) == 10 and text.startswith("The")
    longest = "a" * 200  # more tokens than the model's context, of which the last place is looked at
    ids = model.encode([longest])[0].ids[: model.context]
    _, text = play.look(model, model.decode(ids[1:]), len(ids) - 1)
    assert text == model.decode(ids[1:])


def test_what_a_model_cannot_do_is_said(folders, ours):
    with pytest.raises(UserError, match="a masked model also reads what follows"):
        play.look(load_scorer(folders["bert"]), "The old dogs", 1)
    model = load_scorer(folders["gpt2"])
    model.begin_as_its_tokenizer_does()  # it puts nothing there
    assert play.surprisals(model, "The old dogs")[0][1] is None
    with pytest.raises(UserError, match="nothing stands before the first word; click on a later one"):
        play.look(model, "The old dogs", 0)


@pytest.mark.parametrize(
    "sentence, problem", [(" ", "there is no sentence"), ("a dog " * 300, "context of 256 tokens")]
)
def test_mistakes(ours, sentence, problem):
    with pytest.raises(UserError, match=problem):
        play.surprisals(ours, sentence)


def test_without_gradio_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="needs the package gradio: pip install gradio"):
        play.main([str(ROOT / "models" / "llama-3m.pt")])
