"""lab/checkpoint.py: read whole and right, or refused in one line, and nothing in it is executed; lab/files.py."""

import dataclasses
import io
import os
import pathlib
import pickle
import sys

from conftest import ROOT
from lab import checkpoint, files
from lab.files import UserError
from lab.text import pocket_english
from stand_ins import save_checkpoint, score, train_tokenizer

import pytest
import torch


@pytest.fixture
def good(tmp_path):
    """(path of a checkpoint, the dictionary in it)"""
    path = str(tmp_path / "ckpt.pt")
    return path, save_checkpoint(path)


def refuses(path, words):
    with pytest.raises(UserError) as e:
        checkpoint.load_model(path)
    assert words in str(e.value) and str(path) in str(e.value) and "\n" not in str(e.value), str(e.value)


def test_round_trip(good):
    path, tree = good
    model, ckpt = checkpoint.load_model(path)
    assert not model.training and len(tree["weights"]) == len(list(model.parameters()))
    assert all(torch.equal(p, tree["weights"][name]) for name, p in model.named_parameters())
    assert dataclasses.asdict(ckpt.config) == tree["model"] and ckpt.provenance == {"corpus": "test"}
    assert ckpt.tokenizer.decode(ckpt.tokenizer.encode("The cat.")) == "The cat."
    assert ckpt.sha256 == checkpoint.file_sha256(path)


class Payload:
    """Unpickles as a call that leaves a folder behind."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.mkdir, (self.trap,)


def test_a_payload_is_not_executed(tmp_path):
    trap, path = str(tmp_path / "sprung"), str(tmp_path / "x.pt")
    torch.save({"format": "sllama-lab", "version": 1, "model": Payload(trap)}, path)
    refuses(path, "not a readable checkpoint")
    with open(path, "wb") as f:
        pickle.dump(Payload(trap), f)
    refuses(path, "not a readable checkpoint")
    assert not os.path.exists(trap)


def changed(tree, part, **values):
    return {**tree, part: {**tree[part], **values}}


def test_what_does_not_fit_together_is_refused(good):
    path, tree = good
    weights = tree["weights"]
    head = weights["lm_head.weight"]
    other = torch.frombuffer(bytearray(train_tokenizer(380).model_bytes), dtype=torch.uint8)
    cases = [
        ("format version 99", {**tree, "version": 99}),
        ("not a checkpoint of this project", weights),
        ("bad model settings", changed(tree, "model", trust_remote_code=True)),
        ("does not divide", changed(tree, "model", num_attention_heads=3)),
        ("NaN or infinite", changed(tree, "weights", **{"lm_head.weight": head.double() * 1e300})),
        ("do not fit its settings", changed(tree, "weights", **{"lm_head.weight": head.T.contiguous()})),
        ("Unexpected key", changed(tree, "weights", extra=torch.zeros(3))),
        ("not a readable checkpoint", {**tree, "weights": [1, 2]}),
        ("pieces, its model", {**tree, "tokenizer": other}),
    ]
    for words, tampered in cases:
        checkpoint.save(path, tampered)
        refuses(path, words)


def test_damaged_files_are_refused(good):
    path, tree = good
    whole = pathlib.Path(path).read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(tree["weights"]["lm_head.weight"].numpy().tobytes())] ^= 1
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], flipped):
        pathlib.Path(path).write_bytes(damaged)
        refuses(path, "not a readable checkpoint")


def test_what_else_a_user_gives_is_called_by_its_name(good, tmp_path):
    """No file, one without permission, a folder, Hugging Face's weights: each is said, with what to do."""
    path, _ = good
    refuses(str(tmp_path / "none.pt"), "cannot be read (No such file or directory); train.py writes")
    folder = tmp_path / "my hf"
    folder.mkdir()
    for given in (folder, folder / "model.safetensors"):
        refuses(str(given), f"not a checkpoint; give one, such as {folder}/ckpt.pt, or convert a Hugging Face folder")
        refuses(str(given), f"python export.py --from-hf '{folder}' converted.pt")
    os.chmod(path, 0)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)  # root may read everything
    try:
        refuses(path, "cannot be read (Permission denied)")
    finally:
        os.seteuid(me)


@pytest.mark.slow
def test_the_model_that_comes_along_is_what_its_card_says():
    """And it knows some English."""
    path = ROOT / "models" / "llama-3m.pt"
    model, ckpt = checkpoint.load_model(path)
    card = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    assert ckpt.sha256 in card and f"{model.num_params():,}" in card
    assert path.stat().st_size < 7e6 and {w.dtype for w in ckpt.weights.values()} == {torch.bfloat16}
    rows = [row for found in pocket_english.pairs(0, 10).values() for row in found]
    good, bad = (score(model, [row[f"sentence_{which}"] for row in rows], ckpt.tokenizer) for which in ("good", "bad"))
    assert (good > bad).mean() > 0.6


# --- files


@pytest.mark.parametrize(
    "fault, expected", [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), UserError)]
)
def test_a_fault_in_the_middle_of_a_write_is_called_by_its_name(good, fault, expected, monkeypatch):
    """torch.save makes a RuntimeError of what its file raises; Ctrl-C stays Ctrl-C. The old file stays."""
    path, tree = good
    before = open(path, "rb").read()

    class Failing(io.FileIO):
        written = 0

        def write(self, data):
            self.written += 1
            if self.written == 5:
                raise fault
            return super().write(data)

    monkeypatch.setattr(files, "open", Failing, raising=False)
    with pytest.raises(expected, match="No space left" if expected is UserError else None):
        checkpoint.save(path, tree)
    assert open(path, "rb").read() == before and os.listdir(os.path.dirname(path)) == ["ckpt.pt"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: events.append(f"{os.fstat(handle).st_size} bytes"))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("rename") or replace(a, b))
    files.atomic_write(tmp_path / "file", "12345")
    assert events == ["5 bytes", "rename"]


def test_what_is_piped_in_is_read_like_a_file(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    with pytest.raises(UserError, match="-: cannot be read .not UTF-8 text.; save it anew"):
        files.read_text("-", "save it anew")
