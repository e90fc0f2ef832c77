"""A checkpoint from a stranger can do nothing but be refused."""
import os
import pickle
import random
import zipfile

import pytest
import torch

import checkpoint
import pocket_english
import tokenizer
from config import ModelConfig, UserError
from conftest import command, refused
from model import Model

SHAPE = ModelConfig(vocab_size=400, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32, layer_sharing="share")


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train([line for line in pocket_english.text(3000, seed=1) if line], 400)


@pytest.fixture
def good(tok, tmp_path):
    torch.manual_seed(0)
    tree = checkpoint.make(SHAPE, dict(Model(SHAPE).named_parameters()), tok.model_bytes, {"corpus": "test", "steps": 3})
    path = str(tmp_path / "ckpt.pt")
    checkpoint.save(path, tree)
    return path, tree


def refuses(path, words):
    with pytest.raises(UserError) as e:
        checkpoint.load(path)
    assert words in str(e.value) and str(path) in str(e.value) and "\n" not in str(e.value), str(e.value)


def test_round_trip(good):
    path, tree = good
    model, ckpt = checkpoint.load_model(path)
    assert all(torch.equal(p, tree["weights"][n]) for n, p in model.named_parameters()) and not model.training
    assert ckpt.config == SHAPE and ckpt.provenance == {"corpus": "test", "steps": 3} and ckpt.tokenizer.decode(ckpt.tokenizer.encode("The cat.")) == "The cat."
    assert len(tree["weights"]) == len(dict(model.named_parameters())) and ckpt.sha256 == checkpoint.file_sha256(path)


def test_a_payload_is_not_executed(tmp_path):
    trap = tmp_path / "sprung"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(trap),)
    for name, write in (("torch.pt", lambda p: torch.save({"format": "sllama-lab", "version": 1, "model": Payload()}, p)),
                        ("plain.pt", lambda p: open(p, "wb").write(pickle.dumps(Payload())))):
        path = str(tmp_path / name)
        write(path)
        refuses(path, "not a readable checkpoint")
        assert not trap.exists()


def test_tampered_content_is_refused(good, tok, tmp_path):
    path, tree = good
    weights = tree["weights"]
    name = "lm_head.weight"

    def variant(words, **changes):
        checkpoint.save(path, {**tree, **changes})
        refuses(path, words)
    variant("format version 99", version=99)
    variant("not a checkpoint of this project", format="other")
    variant("bad model settings", model={**tree["model"], "hidden_size": "wide"})
    variant("bad model settings", model={**tree["model"], "trust_remote_code": True})
    variant("does not divide", model={**tree["model"], "num_attention_heads": 3})
    variant("its settings need", model={**tree["model"], "vocab_size": 2**20, "hidden_size": 2**15})        # a huge declared size allocates nothing
    variant("at most", model={**tree["model"], "num_hidden_layers": 10**9})
    variant("holds NaN", weights={**weights, name: weights[name].clone().index_fill_(0, torch.tensor([3]), float("nan"))})
    variant("holds NaN", weights={**weights, name: weights[name].clone().index_fill_(0, torch.tensor([3]), float("inf"))})
    variant("does not fit the settings", weights={**weights, name: weights[name].T.contiguous()})
    variant("does not fit the settings", weights={**weights, name: weights[name].long()})
    variant("its settings need", weights={**weights, "extra": torch.zeros(3)})
    variant("is missing", weights={("renamed" if n == name else n): w for n, w in weights.items()})
    variant("no weights", weights=[1, 2])
    variant("not a plain tensor", weights={**weights, name: torch.zeros(1).expand(400, 16)})               # stride 0
    variant("not a plain tensor", weights={**weights, name: torch.zeros(400, 16).to_sparse()})
    variant("not a plain tensor", weights={**weights, name: torch.zeros(400, 16, device="meta")})
    variant("more than 2^25", model={**tree["model"], "hidden_size": 2**16, "num_attention_heads": 1, "max_position_embeddings": 2**17})
    variant("not a SentencePiece model", tokenizer=torch.zeros(10, dtype=torch.uint8))
    variant("no tokenizer", tokenizer="text")
    variant("pieces, its model", tokenizer=torch.frombuffer(bytearray(tokenizer.train([x for x in pocket_english.text(3000, seed=1) if x], 380).model_bytes), dtype=torch.uint8))
    variant("provenance", provenance=None)


def test_damaged_files_are_refused(good, tmp_path):
    path, _ = good
    whole = open(path, "rb").read()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        open(path, "wb").write(whole[:size])
        refuses(path, "not a readable checkpoint")
    rng, changed = random.Random(0), 0
    for _ in range(60):                                                 # a flipped bit is caught by a checksum, or changes nothing that is used
        at = rng.randrange(len(whole))
        open(path, "wb").write(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1:])
        try:
            loaded = checkpoint.load(path)
        except UserError:
            changed += 1
        else:
            open(path, "wb").write(whole)
            assert all(torch.equal(w, loaded.weights[n]) for n, w in checkpoint.load(path).weights.items())
    assert changed > 30
    refuses(str(tmp_path / "none.pt"), "no such file")
    refuses(str(tmp_path), "not a file")


def test_a_zip_bomb_is_refused_unread(tmp_path):
    path = str(tmp_path / "bomb.pt")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", b"\0" * 50_000_000)
    refuses(path, "unpacks to more than its size")


def test_tied_head_is_stored_once(tok, tmp_path):
    shape = ModelConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, tie_word_embeddings=True)
    model = Model(shape)
    path = str(tmp_path / "tied.pt")
    checkpoint.save(path, checkpoint.make(shape, dict(model.named_parameters()), tok.model_bytes, {}))
    loaded, ckpt = checkpoint.load_model(path)
    assert "embed_tokens.weight" not in ckpt.weights and "lm_head.weight" in ckpt.weights
    ids = torch.randint(0, 400, (2, 9))
    assert torch.equal(loaded(ids), model(ids))


def test_on_the_command_line(good, tmp_path):
    open(tmp_path / "bad.pt", "wb").write(b"nonsense")
    for script in ("sample.py", "eval_blimp.py"):
        refused(command(script, tmp_path / "none.pt", cwd=tmp_path), "none.pt", "no such file")
        refused(command(script, tmp_path / "bad.pt", cwd=tmp_path), "bad.pt", "not a readable checkpoint")
