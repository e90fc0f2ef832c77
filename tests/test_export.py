"""export.py: its folders load in transformers as they are and compute the same; a folder becomes our weights again."""

import json
import os
import pathlib
import random
import shutil
import sys

import export
from lab import checkpoint
from lab.files import UserError
from lab.hub.folder import tokenizer_files
from lab.text import pocket_english
from model import ATTENTION
from stand_ins import folder_bytes, sentencepiece_model
from test_model import ARRAYS, CASES, EVERY, label, of_case, random_model, tiny
import tokenizer

import pytest
from safetensors.torch import load_file, save_file
import torch
import yaml

KINDS = {
    "plain": {},
    "sllama": {"embedding": "repeat", "attention": "pwa", "mlp": "shared_projection", "layer_sharing": "share"},
    "rra": {"attention": "rra", "embedding": "linear", "layer_sharing": "reuse", "num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 2, "rope_theta": 500.0, "rms_norm_eps": 1e-3},
    "skqa": {"attention": "skqa"},
}
HOSTILE = ["", " ", "  ", " a", "a ", "two  spaces", "   three   ", "  \n  x  ", " " * 300]
HOSTILE += ["\t", "\n", "a\tb\n", "\r\n", "\x00", "a\x00b", "\x01\x7f", "\u200b", "\ufeff", "\u00a0x"]
HOSTILE += ["🙂", "👩‍👩‍👧 family", "日本語のテキスト", "e\u0301", "ﬁ", "\U0010ffff", "\ufffd"]
HOSTILE += ["<s>", "</s> <unk>", "a<s>b", "<s> <s>", "<0x0A>", "▁", "a▁b", "▁▁ a", " ▁"]
HOSTILE += ["aaaaaaaaaaaa", "=====", "12345 3.14", "x" * 3000]
IDS = torch.randint(61, (2, 30), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def tok():
    lines = [line for line in pocket_english.text(20000, seed=2) if line]
    return tokenizer.train(lines + ["Ünïcode  and   spaces", "1234 == ==== ((", "aaaa haha hahaha"] * 5, 700)


def save(path, tok, model, **provenance):
    provenance = {"corpus": "a test corpus"} | provenance
    checkpoint.save(str(path), checkpoint.make(model.config, model.state_dict(), tok.model_bytes, provenance))
    return str(path)


@pytest.fixture
def make(tok, tmp_path):
    """make(kind) -> (path of a checkpoint of that kind, its model)"""

    def make(kind="sllama", name="ckpt.pt", **provenance):
        model = random_model(tiny(vocab_size=tok.vocab_size, **KINDS[kind]), scale=0.2)
        return save(tmp_path / name, tok, model, **provenance), model

    return make


def to_folder(path, folder, *options):
    export.main([str(path), str(folder), *options])
    return str(folder)


def from_folder(folder, tmp_path):
    path = str(tmp_path / "converted.pt")
    export.main(["--from-hf", str(folder), path, "--replace"])
    return checkpoint.load_model(path)


def logits(model, ids):
    with torch.no_grad():
        out = model(ids)
    return getattr(out, "logits", out)


# --- peers: transformers


@pytest.fixture(scope="module")
def transformers():
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pytest.importorskip("transformers")


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTION)
def test_every_combination_unfolds_into_the_same_function(transformers, attention):
    configs = [c for c in EVERY if c.attention == attention and c.embedding != "attention"]
    assert len(configs) >= 24
    for config in configs:
        model = random_model(config)
        settings, weights = export.unfold(model)
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
        theirs.load_state_dict(weights)
        assert (logits(model, IDS) - logits(theirs, IDS)).abs().max() < 1e-4, label(config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_folder_in_transformers(transformers, kind, make, tok, tmp_path, capsys):
    """Plain AutoModel and AutoTokenizer, no custom code: every weight is found, logits are equal, text is generated."""
    path, model = make(kind)
    folder = to_folder(path, tmp_path / "hf")
    assert f"folder: {folder}" in capsys.readouterr().out
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    assert type(theirs).__name__ == "LlamaForCausalLM" and theirs.dtype == torch.float32
    ids = torch.randint(tok.vocab_size, (3, 32))
    assert (logits(model, ids) - logits(theirs.eval(), ids)).abs().max() < 1e-4
    names = transformers.AutoTokenizer.from_pretrained(folder)
    cat = names("The cat", return_tensors="pt")
    assert cat["input_ids"].tolist() == [[1] + tok.encode("The cat")] and set(cat) == {"input_ids", "attention_mask"}
    out = theirs.generate(**cat, max_length=50, temperature=0.7, do_sample=True)[0]
    assert names.decode(out, skip_special_tokens=True).startswith("The cat")


@pytest.fixture(scope="module")
def theirs(transformers, tok, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    path = save(folder / "c.pt", tok, random_model(tiny(vocab_size=tok.vocab_size)))
    return transformers.AutoTokenizer.from_pretrained(to_folder(path, folder / "hf"))


def same_ids(theirs, tok, texts):
    ours = tok.encode_batch(texts)
    for text, a, b in zip(texts, ours, theirs(texts)["input_ids"]):
        assert [tok.bos_id] + a == b, text
    assert theirs(texts, add_special_tokens=False)["input_ids"] == ours


def test_same_ids_on_hostile_text(theirs, tok):
    same_ids(theirs, tok, HOSTILE)
    for text in HOSTILE:
        assert theirs.encode(text, add_special_tokens=False) == tok.encode(text)
        assert theirs.decode(tok.encode(text)) == text
    special = {name: getattr(theirs, f"{name}_token_id") for name in ("unk", "bos", "eos", "pad")}
    assert special == {"unk": 0, "bos": 1, "eos": 2, "pad": 2}
    assert theirs.decode([1] + tok.encode("a <s> b") + [2], skip_special_tokens=True) == "a <s> b"


@pytest.mark.slow
def test_same_ids_on_text(theirs, tok):
    """Sentences; runs, overlaps and scraps of pieces, where it would show if they were joined in another order."""
    same_ids(theirs, tok, list(pocket_english.text(30000, seed=3)))
    dice = random.Random(0)
    units = ["a", "ab", "aba", "ha", " ", "  ", "no ", "=", "12", "an", "th", "he", " t", "\n", "é", "▁"]
    pieces = [tok.sp.id_to_piece(i).replace("▁", " ") for i in range(3, tok.vocab_size)]
    same_ids(theirs, tok, ["".join(dice.choices(units, k=dice.randint(1, 20))) for _ in range(1500)])
    same_ids(theirs, tok, ["".join(dice.choices(pieces, k=8)) for _ in range(1500)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_answer(side, transformers, make, tmp_path):
    """The BabyLM pipeline fine-tunes a new head on padded batches: the pad token is known, and ignored."""
    folder = to_folder(make()[0], tmp_path / "hf")
    names = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    assert names.pad_token_id == names.eos_token_id == model.config.pad_token_id == 2
    batch = names(["The cat sees.", "The dogs see a man."], padding=True, return_tensors="pt")
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 2).sum() > 0
    alone = names("The cat sees.", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**alone).logits[0], model(**batch).logits[0], rtol=1e-4, atol=1e-4)


def test_without_transformers(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import of it fails
    to_folder(make()[0], tmp_path / "hf")
    files = "README.md config.json generation_config.json model.safetensors special_tokens_map.json"
    files += " tokenizer.json tokenizer.model tokenizer_config.json"
    assert sorted(os.listdir(tmp_path / "hf")) == files.split()


# --- what cannot be expressed


def test_refuses_what_a_llama_cannot_compute(tok, tmp_path):
    path = save(tmp_path / "c.pt", tok, random_model(tiny(vocab_size=tok.vocab_size, embedding="attention")))
    with pytest.raises(UserError, match="looks at earlier tokens"):
        export.main([path, str(tmp_path / "hf")])
    assert os.listdir(tmp_path) == ["c.pt"]


OTHER_KINDS = {"model_type": "unigram", "add_dummy_prefix": False, "user_defined_symbols": ["<mask>"]}
OTHER_KINDS |= {"remove_extra_whitespaces": True, "treat_whitespace_as_suffix": True}
OTHER_KINDS |= {"normalization_rule_name": "nmt_nfkc", "normalization_rule_tsv": "rules.tsv"}


@pytest.mark.parametrize("option", OTHER_KINDS)
def test_refuses_a_tokenizer_of_another_kind(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.tsv").write_text("51\t71\n")  # Q becomes q, and nothing else changes
    options = {"byte_fallback": True, option: OTHER_KINDS[option]}
    other = tokenizer.Tokenizer(sentencepiece_model(pocket_english.text(3000), 400, **options))
    with pytest.raises(UserError, match="not plain byte-pair encoding of words .* normalises text"):
        tokenizer_files(other, 256)


# --- and back


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, make, tmp_path):
    """Checkpoint -> folder -> checkpoint: the same logits; and the folder of the second is that of the first."""
    path, model = make(kind)
    one = to_folder(path, tmp_path / "one")
    again, ckpt = from_folder(one, tmp_path)
    two = to_folder(ckpt.path, tmp_path / "two")
    torch.testing.assert_close(logits(again, IDS), logits(model, IDS), rtol=0, atol=2e-6)
    assert "converted from one" in ckpt.provenance["corpus"]
    assert ckpt.config.attention == ("rra" if kind == "rra" else "mha")
    first, second = (load_file(f"{folder}/model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys() and all(torch.equal(w, second[name]) for name, w in first.items())
    if kind in ("plain", "tied"):
        assert all(torch.equal(w, ckpt.weights[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folders_written_by_transformers(dtype, transformers, tok, tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "rope_theta": 5000.0, "tie_word_embeddings": dtype == "bfloat16"}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=tok.vocab_size, **shape))
    theirs = theirs.to(getattr(torch, dtype)).eval()
    theirs.save_pretrained(str(tmp_path / "hf"))
    (tmp_path / "hf" / "tokenizer.model").write_bytes(tok.model_bytes)
    model, _ = from_folder(tmp_path / "hf", tmp_path)
    assert (logits(model, IDS) - logits(theirs.float(), IDS)).abs().max() < 1e-5
    assert model.config.rope_theta == 5000 and model.config.num_key_value_heads == 2
    assert model.config.tie_word_embeddings == (dtype == "bfloat16")


@pytest.fixture(scope="module")
def tok61():
    """The bytes of a tokenizer of 61 pieces for the reference models, which have so few."""
    return sentencepiece_model(pocket_english.text(3000), 61)


@pytest.fixture
def released(tok61, tmp_path):
    """released(case, change) -> a folder as SLlama was released; change(weights) alters its weights."""

    def released(case, change=dict, **settings):
        folder = tmp_path / "released"
        folder.mkdir(exist_ok=True)
        save_file(change(of_case(case, "weight")), str(folder / "model.safetensors"))
        (folder / "config.json").write_text(json.dumps(CASES[case]["config"] | {"model_type": "sllama"} | settings))
        (folder / "tokenizer.model").write_bytes(tok61)
        return str(folder)

    return released


@pytest.mark.parametrize("case", CASES)
def test_released_layout(case, released, tmp_path):
    """Every weight arrives once, and the checkpoint on disk gives the release's logits."""
    model, ckpt = from_folder(released(case), tmp_path)
    assert sum(w.numel() for w in ckpt.weights.values()) == CASES[case]["unique_parameters"]
    assert (logits(model, ARRAYS["input_ids"].long()) - ARRAYS[case + "/logits"]).abs().max() < 1e-5


def repeated(weights):
    """The shared weights once for every layer."""
    more = {}
    for name, w in weights.items():
        if name.startswith("model.layers.0.") and "layernorm" not in name:
            more |= {name.replace(".0.", f".{i}.", 1): w.clone() for i in range(4)}
    return weights | more


def of_the_last_layer(weights):
    """As save_pretrained leaves them."""
    renamed = {name.replace("layers.0.self_attn", "layers.3.self_attn"): w for name, w in weights.items()}
    return {name.replace("up_proj", "down_proj"): w for name, w in renamed.items()}


@pytest.mark.parametrize("change", [repeated, of_the_last_layer])
def test_released_layout_however_it_was_saved(change, released, tmp_path):
    want = from_folder(released("sllama_full"), tmp_path)[1].weights
    got = from_folder(released("sllama_full", change), tmp_path)[1].weights
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


BROKEN = {"lm_head.weight": torch.full((61, 16), float("nan"))}
TWICE = {"model.layers.2.mlp.gate_proj.weight": torch.randn(24, 16)}
TOO_MANY = {"model.layers.0.self_attn.q_proj.weight": torch.randn(16, 16)}


@pytest.mark.parametrize(
    "reason, settings, weights",
    [
        ("one weight in this model", {}, TWICE),
        ("Unexpected key.*q_proj", {}, TOO_MANY),
        ("Missing key.*norm.weight", {}, {"model.norm.weight": None}),
        ("NaN", {}, BROKEN),
        ("size mismatch", {"intermediate_size": 25}, {}),
        ("61 pieces", {"vocab_size": 62}, {}),
        ("hidden_size", {"hidden_size": "many"}, {}),
        ("model_type", {"model_type": "gpt2"}, {}),
        ("hidden_act", {"hidden_act": "gelu"}, {}),
        ("rope_scaling", {"rope_parameters": {"rope_type": "llama3"}}, {}),
        ("not a readable checkpoint", {"rope_scaling": "odd"}, {}),
    ],
)
def test_what_is_not_a_model_of_ours_is_refused(reason, settings, weights, released, tmp_path):
    def change(held):
        return {name: w for name, w in (held | weights).items() if w is not None}

    with pytest.raises(UserError, match=reason):
        from_folder(released("sllama_full", change, **settings), tmp_path)
    assert not (tmp_path / "converted.pt").exists()


def test_biases_that_are_not_those_of_rra_are_refused(make, tmp_path):
    folder = to_folder(make("rra")[0], tmp_path / "hf")
    weights = load_file(f"{folder}/model.safetensors")
    weights["model.layers.1.self_attn.q_proj.bias"][0] += 1
    save_file(weights, f"{folder}/model.safetensors")
    with pytest.raises(UserError, match="attention_bias: with biases, only an exported `rra` can be converted"):
        from_folder(folder, tmp_path)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("config.json", b"{", "damaged, or not a JSON dictionary"),
        ("config.json", None, "no config.json in it"),
        ("tokenizer.model", None, "only SentencePiece tokenizers"),
        ("tokenizer.model", b"junk", "not a SentencePiece model"),
        ("model.safetensors", None, "save the model again"),
        ("model.safetensors", b"\0" * 100, "not a readable checkpoint"),
    ],
)
def test_broken_files_are_refused(name, content, reason, released, tmp_path):
    file = pathlib.Path(released("plain_llama"), name)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        from_folder(str(file.parent), tmp_path)
    assert not (tmp_path / "converted.pt").exists()


def test_an_existing_checkpoint_is_not_overwritten(make, tmp_path):
    path, other = make()[0], make("plain", "other.pt")[0]
    folder = to_folder(path, tmp_path / "hf")
    before = pathlib.Path(path).read_bytes()
    for arguments in (["--from-hf", folder, path], [other, path, "--release"]):
        with pytest.raises(UserError, match="ckpt.pt: exists; .* --replace"):
            export.main(arguments)
    with pytest.raises(UserError, match="is a file"):
        export.main([other, path, "--replace"])
    assert pathlib.Path(path).read_bytes() == before


def test_a_released_checkpoint_is_the_same_model_in_bfloat16(make, tmp_path):
    path, model = make(steps=3)
    target = str(tmp_path / "models" / "small.pt")
    export.main([path, "--release", target])
    again, ckpt = checkpoint.load_model(target)
    assert {w.dtype for w in ckpt.weights.values()} == {torch.bfloat16}
    weights = dict(model.named_parameters())
    assert all(torch.equal(p, weights[name].bfloat16().float()) for name, p in again.named_parameters())
    assert ckpt.config == model.config and ckpt.provenance["steps"] == 3
    assert ckpt.provenance["released_from_sha256"] == checkpoint.file_sha256(path)


# --- the folder


def test_a_folder_is_written_into_only_when_asked(make, tmp_path):
    path, other, folder = make()[0], make("plain", "other.pt")[0], tmp_path / "sub" / "hf"
    to_folder(path, folder)
    (folder / "notes").write_text("mine")
    before = folder_bytes(folder)
    for checkpoint_of_either in (path, other):
        with pytest.raises(UserError, match="hf: exists; .* --replace"):
            to_folder(checkpoint_of_either, folder)
    assert folder_bytes(folder) == before
    to_folder(other, folder, "--replace", "--license", "mit")
    after = folder_bytes(folder)
    assert after["notes"] == b"mine" and after["model.safetensors"] != before["model.safetensors"]
    assert b"license: mit" in after["README.md"]


def test_a_failure_leaves_the_folder_as_it_was(make, tmp_path, monkeypatch):
    folder = tmp_path / "hf"
    to_folder(make()[0], folder)
    before, write = folder_bytes(folder), export.atomic_write

    def full(name, content):
        if name.endswith("config.json"):
            raise UserError("disk full")
        write(name, content)

    monkeypatch.setattr(export, "atomic_write", full)
    with pytest.raises(UserError, match="disk full"):
        to_folder(make("plain", "other.pt")[0], folder, "--replace")
    assert folder_bytes(folder) == before


def card_of(folder):
    """(metadata, text) of a folder's README.md."""
    _, front, text = pathlib.Path(folder, "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_model_card(make, tmp_path):
    sources = [{"name": "wiki", "bytes": 666667, "words": 112345}, {"name": "odd: |name", "bytes": 5, "words": 1}]
    data = {"source": "babylm", "sources": sources, "train": {"words": 99}, "boundary": "line"}
    settings = {"data": {"sources": ["wiki"], "budget_mb": 2.0}, "train": {"learning_rate": 3e-4, "save_every": None}}
    run = {"words": 990, "val_loss": 3.25, "val_bits_per_byte": 1.5}
    path, model = make(corpus="a: corpus {x} of #1", data=data, settings=settings, **run)
    blimp = {"accuracy": 0.6125, "pairs": 134, "benchmark": "BLiMP", "warnings": ["134 of 67,000 pairs"]}
    blimp["phenomena"] = {"npi_licensing": {"accuracy": 0.75, "pairs": 14, "ties": 0}}
    blimp["conventions"] = {"max_pairs_per_paradigm": 2, "compat": None}
    (tmp_path / "blimp.json").write_text(json.dumps(blimp))
    (tmp_path / "babylm.json").write_text('{"main": {"comps": {"accuracy": 0.5125, "items": 91028}}}')
    given = ["--blimp", str(tmp_path / "blimp.json"), "--babylm", str(tmp_path / "babylm.json"), "--license", "mit"]
    front, text = card_of(to_folder(path, tmp_path / "model-x", *given))
    assert front["license"] == "mit" and front["language"] == ["en"] and front["tags"] == ["llama", "sllama", "babylm"]
    (index,) = front["model-index"]
    subset = "a: corpus {x} of #1, a subset (data.sources ['wiki'], data.budget_mb 2)"
    found = {result["dataset"]["name"]: result["metrics"] for result in index["results"]}
    losses = [{"type": "loss", "value": 3.25}, {"type": "bits_per_byte", "value": 1.5}]
    assert found == {subset: losses, "BLiMP, a subset": [{"type": "accuracy", "value": 0.6125}]}
    assert index["name"] == "model-x"
    for line in f"""\
**{model.num_params():,} parameters** were trained
Training text: {subset}.
99 words of text, 990 seen by the model in all.
| wiki | 666,667 | 112,345 |
| odd: \\|name | 5 | 1 |
| words | 990 |
| train.learning_rate | 0.0003 |
BLiMP, a subset: **61.25 %** of 134 minimal pairs
- 134 of 67,000 pairs
| npi_licensing | 75.00 | 14 |
| comps | 51.25 | 91,028 |
Each line of its training text began with BOS
`mit`. The training texts""".splitlines():
        assert line in text, line


def test_model_card_of_a_checkpoint_without_history(make, tmp_path):
    path, _ = make("plain")
    front, text = card_of(to_folder(path, tmp_path / "hf"))
    assert front["license"] == "unknown" and front["tags"] == ["llama"]
    assert not front.keys() & {"language", "model-index"} and "Language: unknown." in text and "None" not in text
    front, text = card_of(to_folder(path, tmp_path / "of a language", "--language", "no,eo"))
    assert front["language"] == ["no", "eo"] and "Language: no, eo." in text


@pytest.mark.parametrize(
    "option, scores, reason",
    [
        ("--blimp", {"accuracy": 0.5, "pairs": 2, "sha256": {"checkpoint": "0"}}, "are another checkpoint's"),
        ("--babylm", {"main": {"comps": {"accuracy": 0.5, "items": 2, "checkpoint": "0"}}}, "are another checkpoint's"),
        ("--blimp", {}, "no `accuracy` in it; give what eval_blimp.py --json wrote"),
        ("--babylm", {}, "no `main` in it; give what python -m lab.hub.babylm score wrote"),
    ],
)
def test_scores_of_another_checkpoint_are_refused(option, scores, reason, make, tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match=reason):
        to_folder(make()[0], tmp_path / "hf", option, str(tmp_path / "scores.json"))
    assert not (tmp_path / "hf").exists()


def test_all_checkpoints(make, tmp_path, capsys):
    """chck_1M.pt, ... of a run become the revisions that the BabyLM pipeline asks for, each in a folder named NAME."""
    run, hub = tmp_path / "run", tmp_path / "hub"
    run.mkdir()
    path, _ = make()
    with pytest.raises(UserError, match="train.checkpoint_words=babylm"):
        to_folder(run, hub, "--all-checkpoints")
    for name in ("ckpt.pt", "chck_1M.pt", "chck_10M.pt", "chck_2M.pt", "last.pt"):
        shutil.copy(path, run / name)
    to_folder(run, hub, "--all-checkpoints")
    written = [line.removeprefix(f"folder: {hub}") for line in capsys.readouterr().out.splitlines()[:-1]]
    assert written == [f"/{revision}/hub" for revision in ("main", "chck_1M", "chck_2M", "chck_10M")]
    for folder in written:
        assert (tmp_path / f"hub{folder}" / "model.safetensors").exists()
    shutil.rmtree(hub / "main")
    with pytest.raises(UserError, match="chck_1M/hub: exists; .* --replace"):
        to_folder(run, hub, "--all-checkpoints")
    assert not (hub / "main").exists()  # nor half of it
