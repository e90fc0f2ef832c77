"""Models of others: their scores beside transformers' by hand, minicons and lm-eval; what cannot be loaded."""

import json
import pathlib
import shutil
import sys

import eval_blimp
import export
from lab.files import UserError
from lab.score.scorers import KneserNey, Tokens, load_scorer
from lab.text import pocket_english
from stand_ins import load_csv, load_json
from test_eval_blimp import blimp

import numpy as np
import pytest
import torch

AGAIN = "The old dog sees a cup."
TEXTS = [AGAIN, "the cats sleep", "Who did Ella rescue near the singers?", "a", AGAIN]


def scores_of(model, texts):
    return eval_blimp.score(model, texts, model.encode(texts))


@pytest.mark.parametrize("kind", ["gpt2", "pythia", "opt"])
def test_causal_models(strangers, kind):
    """Sentence by sentence, from BOS, by the loss of transformers, a mean over the tokens after BOS."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf, tok = AutoModelForCausalLM.from_pretrained(strangers[kind]), AutoTokenizer.from_pretrained(strangers[kind])
    expected = []
    for text in TEXTS:
        ids = torch.tensor([[tok.bos_token_id, *tok(text, add_special_tokens=False)["input_ids"]]])
        expected.append(-hf(ids, labels=ids).loss.item() * (ids.shape[1] - 1))
    scores = scores_of(load_scorer(strangers[kind]), TEXTS)
    assert scores == pytest.approx(expected, abs=1e-4) and scores[0] == scores[4]


@pytest.mark.parametrize("pll", ["original", "l2r"])
def test_masked_models(strangers, pll):
    """Token by token, each hidden alone or with the rest of its word, by transformers alone."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    hf, tok = AutoModelForMaskedLM.from_pretrained(strangers["bert"]), AutoTokenizer.from_pretrained(strangers["bert"])
    expected = []
    for text in TEXTS:
        encoded = tok(text)
        ids, words, total = encoded["input_ids"], encoded.word_ids(), 0.0
        for place in range(1, len(ids) - 1):
            hidden = torch.tensor([ids])
            hidden[0, place] = tok.mask_token_id
            if pll == "l2r":
                hidden[0, place:][[word == words[place] for word in words[place:]]] = tok.mask_token_id
            total += hf(hidden).logits[0, place].log_softmax(-1)[ids[place]].item()
        expected.append(total)
    model = load_scorer(strangers["bert"], pll=pll)
    rows, head = [], model.model.get_output_embeddings()
    head.register_forward_hook(lambda head, hidden, logits: rows.append(len(logits)))
    assert scores_of(model, TEXTS) == pytest.approx(expected, abs=1e-4) and model.method == f"PLL {pll}"
    different = {tokens.ids: tokens.end - tokens.first for tokens in model.encode(TEXTS)}
    assert sum(rows) == sum(different.values())  # the head sees each hidden token, and no other
    model.model.get_output_embeddings = lambda: None  # as of models that do not say which module it is
    assert scores_of(model, TEXTS) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("pll, metric", [("original", "original"), ("l2r", "within_word_l2r")])
def test_minicons_gives_masked_models_the_same(strangers, pll, metric):
    """Causal ones: test_surprisal.py."""
    minicons = pytest.importorskip("minicons.scorer").MaskedLMScorer(strangers["bert"], "cpu")
    minicons.tokenizer.batch_encode_plus = minicons.tokenizer  # its name before transformers 5
    theirs = minicons.sequence_score(TEXTS, PLL_metric=metric, reduction=lambda logp: logp.sum(0).item())
    assert scores_of(load_scorer(strangers["bert"], pll=pll), TEXTS) == pytest.approx(theirs, abs=1e-4)


def test_lm_eval_gives_the_same(strangers):
    """With --compat lm-eval: what stands before a text, and the space."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, ("", " " + text), i) for i, text in enumerate(TEXTS)]
    for kind in ("gpt2", "pythia", "opt"):
        theirs = huggingface.HFLM(pretrained=strangers[kind], dtype="float32", device="cpu", batch_size=4)
        expected = [logp for logp, _ in theirs.loglikelihood(requests, disable_tqdm=True)]
        scores = scores_of(load_scorer(strangers[kind]), [" " + text for text in TEXTS])
        assert scores == pytest.approx(expected, abs=1e-4)


def test_what_stands_before_the_first_token(strangers):
    """In BabyLM's pipelines only what the tokenizer puts there: GPT-2's nothing, and the first token has no score."""
    model = load_scorer(strangers["gpt2"])
    (usual,) = model.encode(["The cats"])
    assert model.before == "BOS <|endoftext|>" and usual.ids[0] == model.tokenizer.bos_token_id
    model.begin_as_its_tokenizer_does()
    (tokens,) = model.encode(["The cats"])
    assert tokens == Tokens(usual.ids[1:], 1, usual.end - 1) and model.before.startswith("nothing")
    model = load_scorer(strangers["opt"])
    usual = model.encode(["The cats", ""])
    model.begin_as_its_tokenizer_does()
    assert model.encode(["The cats", ""]) == usual and model.before == "BOS </s>"


def test_an_export_scores_as_its_checkpoint(workplace):
    """Within 1e-5 nats a sentence: by another program, which rounds the same sums in another order."""
    export.export_folder("0.pt", "hf")
    for name in ("0.pt", "hf"):
        blimp(f"{name} --data mine --csv {name}.csv")
    for ours, theirs in zip(load_csv("0.pt.csv"), load_csv("hf.csv"), strict=True):
        assert float(ours["score_good"]) == pytest.approx(float(theirs["score_good"]), rel=0, abs=1e-5)
        assert ours["right"] == theirs["right"]


def test_every_output_says_how_a_masked_model_was_scored(workplace, strangers, capsys):
    outputs = ["--json", "r.json", "--csv", "p.csv", "--html", "p.html"]
    eval_blimp.main([strangers["bert"], "--data", "mine", "--compare", "0.pt", *outputs])
    result, out = load_json("r.json"), capsys.readouterr().out
    assert result["method"] == "PLL original" and result["before_first_token"] == "[CLS]"
    assert out.count("PLL original") >= 2 and load_csv("p.csv")[0]["rule"].startswith("method=PLL original")
    assert "bert [PLL original]" in pathlib.Path("p.html").read_text()


def test_what_is_no_language_model(tmp_path, strangers):
    with pytest.raises(UserError, match="weights alone; give the folder"):
        load_scorer(f"{strangers['gpt2']}/model.safetensors")
    with pytest.raises(UserError, match="not a checkpoint; give one, such as .*ckpt.pt"):
        load_scorer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "none such"}')
    with pytest.raises(UserError, match="cannot be loaded as a language model"):
        load_scorer(tmp_path)
    shutil.copytree(strangers["gpt2"], tmp_path, dirs_exist_ok=True)
    shutil.copy(f"{strangers['bert']}/model.safetensors", tmp_path)
    with pytest.raises(UserError, match="not a trained language model: it has no weights for "):
        load_scorer(tmp_path)


def test_code_that_a_model_brings_is_not_run_unasked(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\n")
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "theirs.Config"}}')
    with pytest.raises(UserError, match="brings code of its own.*--trust-remote-code"):
        load_scorer(tmp_path)
    assert not ran.exists()


def test_without_transformers(strangers, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="need transformers: pip install transformers"):
        load_scorer(strangers["gpt2"])


# ------------------------------------------------------------------------------------------------------------ n-grams


def plain_kneser_ney(lines, V, order, given, token):
    """p(token | given) by dictionaries, from the definition. lines begin with BOS, 0."""
    grams = [line[i : i + n] for line in lines for n in range(1, order + 1) for i in range(len(line) - n + 1)]

    def count(gram):
        if gram == (0,):
            return 0
        if len(gram) == order or gram[0] == 0:
            return grams.count(gram)
        return len({longer for longer in grams if longer[1:] == gram})

    def p(context, token):
        shorter = p(context[1:], token) if context else 1 / V
        of_order = [count(gram) for gram in set(grams) if len(gram) == len(context) + 1]
        discount = of_order.count(1) / max(1, of_order.count(1) + 2 * of_order.count(2)) or 0.5
        seen = [count((*context, w)) for w in range(V)]
        if not sum(seen):
            return shorter
        reserved = discount * sum(c > 0 for c in seen)
        return (max(seen[token] - discount, 0) + reserved * shorter) / sum(seen)

    return p(given[-(order - 1) :], token)


def test_kneser_ney():
    """As the definition has it, and a probability: the sum over the vocabulary is 1."""
    rng = np.random.default_rng(0)
    lines = [(0, *rng.integers(1, 5, rng.integers(1, 7)).tolist()) for _ in range(12)]
    model = KneserNey(np.concatenate(lines), 0, 6, order=3)
    for given in ((0,), (0, 1), (0, 3, 2), (0, 5, 1), (0, 1, 2, 3)):
        p = [np.exp(model(np.array([*given, w]))[-1]) for w in range(1, 6)]
        expected = [plain_kneser_ney(lines, 6, 3, given, w) for w in range(6)]
        assert p == pytest.approx(expected[1:], abs=1e-12) and sum(expected) == pytest.approx(1)


def test_n_grams_of_a_prepared_text_are_a_model_as_any_other(project):
    rows = [json.dumps(row) for row in next(iter(pocket_english.pairs(0, 10).values()))]
    pathlib.Path("mine.jsonl").write_text("\n".join(rows))
    eval_blimp.main(["ngram:data/tiny", "--data", "mine.jsonl", "--json", "r.json"])
    result = load_json("r.json")
    assert (
        result["checkpoint"] == "ngram:data/tiny" and result["corpus"] == "tiny test corpus" and result["pairs"] == 10
    )
    words = ["ngram:data/tiny", "--surprisal", "mine.jsonl", "--csv", "w.csv", "--whitespace", "trailing"]
    with pytest.raises(UserError, match="n-grams only score text"):
        eval_blimp.main(words)
    with pytest.raises(UserError, match="no prepared text"):
        load_scorer("ngram:nowhere")
    shutil.copy("data/tiny/meta.json", "meta.json")  # the text itself is lost
    with pytest.raises(UserError, match="no prepared text"):
        load_scorer("ngram:.")
    pathlib.Path("meta.json").write_text("{}")
    with pytest.raises(UserError, match="meta.json: damaged"):
        load_scorer("ngram:.")
