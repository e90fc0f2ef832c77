"""What the tests share: a tiny prepared corpus, commands as a user types them, which tests are slow."""

import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

from hypothesis import HealthCheck, settings
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny, the tests run side by side, and some fork: more threads hang
settings.register_profile("lab", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lab")  # the same examples every time, however busy the machine is
TINY = """
data.name=tiny tokenizer.vocab_size=1000
model.hidden_size=32 model.num_hidden_layers=2 model.num_attention_heads=2 model.intermediate_size=48
model.max_position_embeddings=32
train.batch_size=4 train.max_steps=12 train.eval_every=4 train.save_every=4 train.eval_windows=8
train.learning_rate=1e-2 train.min_learning_rate=1e-3 train.warmup=2 train.decay_steps=null
train.dtype=float32 train.device=cpu train.compile=false""".split()

needs_a_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)

# Slow is what trains, compiles, starts processes or takes more than a second, and `make check` leaves it out: all of
# these files, every test that takes one of these fixtures or calls one of these functions, and what is marked so.
SLOW_FILES = """test_babylm test_bench test_cuda_fake test_faults test_fuzz test_gpu test_kill
test_notebook test_readme test_sample test_systems""".split()
SLOW_FIXTURES = {"project", "walk"}
SLOW_CALLS = {"command", "compile", "run", "Popen", "subprocess"}


def pytest_collection_modifyitems(items):
    for item in items:
        called, fixtures = {*item.function.__code__.co_names}, {*item.fixturenames}
        if item.path.stem in SLOW_FILES or SLOW_FIXTURES & fixtures or SLOW_CALLS & called:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def handlers():
    """train.main takes over SIGINT and SIGTERM; give them back."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for s, handler in before.items():
        signal.signal(s, handler)


@pytest.fixture(autouse=True)
def strictness():
    """A run with train.deterministic in a test's own process leaves PyTorch strict: not for the next test."""
    yield
    import torch  # not up there: it reads OMP_NUM_THREADS

    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """A folder data/ with a prepared corpus `tiny`: Pocket English, 1000 pieces."""
    from lab import corpus
    from lab.text import pocket_english
    import tokenizer

    lines = [line for line in pocket_english.text(20000, seed=1) if line]
    tok = tokenizer.train(lines, 1000)
    cut = len(lines) * 9 // 10
    files = {"tokenizer.model": tok.model_bytes}
    meta = {"name": "tiny", "corpus": "tiny test corpus", "pairs": None}
    meta |= {"vocab_size": 1000, "tokenizer_sha256": tok.sha256}
    for split, part in (("train", lines[:cut]), ("val", lines[cut:])):
        ids = np.array([i for line in part for i in (1, *tok.encode(line))], dtype="<u2")
        files[f"{split}.bin"] = ids.tobytes()
        meta[split] = {
            "bytes": sum(len(line.encode()) + 1 for line in part),
            "words": sum(len(line.split()) for line in part),
            "lines": len(part),
            "tokens": len(ids),
            "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        }
    meta["tokens_per_word"] = meta["train"]["tokens"] / meta["train"]["words"]
    folder = tmp_path_factory.mktemp("data")
    corpus.write(str(folder / "tiny"), files, meta)
    return folder


@pytest.fixture
def project(tiny_corpus, tmp_path, monkeypatch):
    """A fresh working folder with the tiny corpus in it; the current directory of the test."""
    shutil.copy(ROOT / "config.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny").symlink_to(tiny_corpus / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def strangers(tmp_path_factory):
    """{kind: a Hugging Face folder} of small models of others."""
    from strangers import make

    folder = tmp_path_factory.mktemp("strangers")
    return {kind: make(kind, folder / kind) for kind in ("gpt2", "pythia", "opt", "bert")}


@pytest.fixture
def workplace(project):
    """A working folder with two small checkpoints, 0.pt and 1.pt, and a folder of 90 pairs in BLiMP's fields, mine."""
    from lab import checkpoint
    from model import Model, ModelConfig
    from stand_ins import pair, write
    import tokenizer

    import torch

    tok = tokenizer.load("data/tiny/tokenizer.model")
    config = ModelConfig(tok.vocab_size, 32, 2, 2, 48, max_position_embeddings=32)
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Model(config)
        for p in model.parameters():
            p.data.mul_(8 if p.dim() > 1 else 1)
        provenance = {"corpus": "tiny test corpus", "data": {"name": "tiny"}, "words": 1000 * (seed + 1), "steps": 5}
        tree = checkpoint.make(config, dict(model.named_parameters()), tok.model_bytes, provenance)
        checkpoint.save(f"{seed}.pt", tree)
    rng = random.Random(0)
    words = "the boy girls dog sees runs cup old and to".split()

    def sentence():
        return " ".join(rng.choices(words, k=rng.randint(3, 7))) + "."

    files = {}
    for uid, term in (("alpha", "s-selection"), ("beta", "argument_structure"), ("gamma", "binding")):
        fields = {"UID": uid, "linguistics_term": term, "field": "f"}
        files[uid] = [pair(sentence(), sentence(), **fields, pairID=str(i)) for i in range(30)]
    write(project / "mine", files)
    return project


def command(script, *args, env=None, timeout=300, **kwargs):
    """Runs a command line as a user types it; returns the finished process with its output as text."""
    words = [sys.executable, str(ROOT / script), *map(str, args)]
    env = {**os.environ, **(env or {})}
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=timeout, **kwargs)


def refused(result, *words):
    """The command ended as a user's mistake should: status 2, one `error:` line holding `words`, no traceback."""
    assert result.returncode == 2, result.stderr + result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert str(word) in result.stderr, (word, result.stderr)
