"""A checkpoint from a stranger can do nothing but be refused."""
import io
import os
import pickle
import random
import tracemalloc
import zipfile

import pytest
import torch

import tokenizer
from conftest import command, refused
from lab import checkpoint, pocket_english
from lab.files import UserError
from lab.settings import ModelConfig
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


class Call:
    """Unpickles as f(*args)."""

    def __init__(self, f, *args):
        self.call = f, args

    def __reduce__(self):
        return self.call


def nested(part, times):
    """[[part, part], [part, part]] and so on: a few bytes in a pickle, 2^times parts when written out."""
    for _ in range(times):
        part = [part, part]
    return part


@pytest.mark.parametrize("changes, words", [
    ({"extra": Call(bytearray, 2**28)}, "more than plain data"), ({"extra": Call(torch.Tensor, 2**28)}, "more than plain data"),        # both weights_only runs
    ({"provenance": {"corpus": "x", "data": nested("x", 25)}}, "unfolds to more"), ({"version": nested("x", 25)}, "unfolds to more"),
    ({"provenance": {"corpus": ["x" * 10**5] * 10**4}}, "unfolds to more"), ({"model": (nested("x", 25),)}, "unfolds to more")],
    ids=["bytearray", "tensor", "provenance", "version", "long text", "model"])
def test_what_grows_when_read_is_refused(good, changes, words):
    path, tree = good
    checkpoint.save(path, {**tree, **changes})
    tracemalloc.start()
    refuses(path, words)
    assert tracemalloc.get_traced_memory()[1] < 100e6 and os.path.getsize(path) < 1e6
    tracemalloc.stop()


def test_names_from_a_stranger_stay_on_one_line(good):
    path, tree = good
    for changes in ({"model": {**tree["model"], "hidden\n\x1b[31m": 1}}, {"weights": {**tree["weights"], "a\n\x1b[31m": torch.zeros(1).expand(3)}}):
        checkpoint.save(path, {**tree, **changes})
        refuses(path, "?")
    checkpoint.save(path, {**tree, "weights": {**tree["weights"], 3: torch.zeros(1)}})
    refuses(path, "no weights")


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
    variant("more than plain data", weights={**weights, name: torch.zeros(400, 16).to_sparse()})
    variant("more than plain data", weights={**weights, name: torch.zeros(400, 16, device="meta")})
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


@pytest.mark.parametrize("fault, expected", [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), UserError)])
def test_a_fault_in_the_middle_of_a_write_is_called_by_its_name(good, fault, expected, monkeypatch):
    """torch.save makes a RuntimeError of what its file raises; Ctrl-C must stay Ctrl-C, and a full disk say so. The old file stays."""
    path, tree = good
    before = open(path, "rb").read()

    class Failing(io.FileIO):
        written = 0

        def write(self, data):
            self.written += 1
            if self.written == 5:
                raise fault
            return super().write(data)
    monkeypatch.setattr(os, "fdopen", Failing)
    with pytest.raises(expected, match="No space left" if expected is UserError else None):
        checkpoint.save(path, tree)
    assert open(path, "rb").read() == before and os.listdir(os.path.dirname(path)) == ["ckpt.pt"]


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
