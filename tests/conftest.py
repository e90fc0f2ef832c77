"""A tiny prepared corpus that the tests share: Pocket English, 1000 pieces."""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny, the tests run side by side, and some fork: more threads hang
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

# Slow is what trains, compiles or starts processes: `make check` leaves it out. All of these files and tests
# (more than a second on a busy machine), and every one that takes one of these fixtures or calls one of these
# functions; a test can also be marked slow by itself.
SLOW_FILES = """test_babylm test_bench test_commands test_cuda_fake test_faults test_fuzz test_gpu test_kill test_models
test_notebook test_readme test_sample test_systems""".split()
SLOW_TESTS = """
test_a_trick_by_readmes_letter_leaves_the_tests_green test_all_outputs_agree
test_any_corpus_keeps_the_promises test_any_line_is_a_pair_or_an_error_that_names_it
test_any_override_is_taken_or_refused test_any_sequences_in_any_layout
test_any_settings_come_back_from_their_file test_as_a_user_types_it test_auto_falls_back_and_says_so
test_blimp_is_recognised_and_what_is_missing_said test_budgets_are_equal_and_nested
test_cleaning_takes_linear_time test_command test_command_line test_compile_changes_no_loss
test_compile_takes_the_layers_as_one_graph test_copies_are_the_text_in_other_pieces
test_ctrl_c_while_a_command_starts
test_every_combination_unfolds_into_the_same_function test_export_needs_no_transformers
test_folder_in_transformers test_generation_draws_by_the_models_probabilities
test_interleave_keeps_all_and_balances test_no_tested_sentence_is_ever_in_the_text
test_pairs_have_blimps_fields test_pocket
test_pocket_never_asks_the_network test_same_ids_on_text test_same_settings_same_bytes
test_size_with_as_many_pairs_as_blimp
test_the_changes_that_docs_fork_shows test_the_file_alone_loads_the_model_that_comes_along
test_they_end_with_their_parent test_threads_are_told_how_to_wait_before_pytorch_is_imported
test_training_scores_a_fixed_subset test_what_changed_is_made_again
test_what_only_a_plot_or_a_page_needs_is_not_imported test_without_a_network_few_lines_say_so""".split()
SLOW_FIXTURES = {"project", "walk"}
SLOW_CALLS = {"command", "compile", "run", "Popen", "subprocess"}


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: trains, compiles or starts processes; not part of `make check`")


def pytest_collection_modifyitems(items):
    for item in items:
        named = item.path.stem in SLOW_FILES or item.originalname in SLOW_TESTS
        if named or SLOW_FIXTURES & {*item.fixturenames} or SLOW_CALLS & {*item.function.__code__.co_names}:
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
    """A folder in which train.py finds config.yaml and data/tiny."""
    from lab import files
    from lab.text import pocket_english
    import tokenizer

    folder = tmp_path_factory.mktemp("project")
    (folder / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    data = folder / "data" / "tiny"
    data.mkdir(parents=True)
    lines = [line for line in pocket_english.text(20000, seed=1) if line]
    tok = tokenizer.train(lines, 1000)
    cut = len(lines) * 9 // 10
    meta = {
        "corpus": "tiny test corpus",
        "name": "tiny",
        "vocab_size": 1000,
        "tokenizer_sha256": tok.sha256,
        "pairs": None,
    }
    for split, part in (("train", lines[:cut]), ("val", lines[cut:])):
        ids = np.array([i for line in part for i in (1, *tok.encode(line))], dtype="<u2")
        (data / f"{split}.bin").write_bytes(ids.tobytes())
        meta[split] = {
            "bytes": sum(len(line.encode()) + 1 for line in part),
            "words": sum(len(line.split()) for line in part),
            "lines": len(part),
            "tokens": len(ids),
            "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        }
    meta["tokens_per_word"] = meta["train"]["tokens"] / meta["train"]["words"]
    (data / "tokenizer.model").write_bytes(tok.model_bytes)
    (data / "meta.json").write_text(json.dumps(files.sealed(meta)))
    return folder


@pytest.fixture
def project(tiny_corpus, tmp_path, monkeypatch):
    """A fresh working folder with the tiny corpus in it; the current directory of the test."""
    (tmp_path / "config.yaml").write_text((tiny_corpus / "config.yaml").read_text())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny").symlink_to(tiny_corpus / "data" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(script, *args, cwd=None, env=None, timeout=300, **kwargs):
    """Runs a command line as a user types it; returns the finished process with its output as text."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        **kwargs,
    )


def refused(result, *words):
    """The command ended as a user's mistake should: status 2, one `error:` line holding `words`, no traceback."""
    assert result.returncode == 2, result.stderr + result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert str(word) in result.stderr, (word, result.stderr)
