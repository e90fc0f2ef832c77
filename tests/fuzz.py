"""Damages every kind of input file and gives it to the commands that read it, which refuse it in one line or use it.

    TMPDIR=/dev/shm python -m tests.fuzz [--trials 2000] [--kinds ckpt.pt,meta.json] [--seed 0]

A trial changes one file of a good folder as disks, networks and editors do (bits, bytes, slices; in what people write
by hand also values and keys) and runs commands there, in a process of its own. It fails with
    traceback   any exception but UserError, or the death of the process, which gets a gigabyte more than it has
    hang        more than 20 seconds
    changed     a checksum protects the file, and yet a content that is not the good one was accepted
No checksum protects what a user brings: settings, texts, pairs, a tokenizer, scores, a Hugging Face folder.
"""

import argparse
import collections
from collections.abc import Callable
import copy
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
import eval_blimp
import export
from lab import checkpoint, cli, settings
from lab.files import UserError
from lab.text import pocket_english
import prepare
import sample
from tests.kill import ROOT, same
import tokenizer
import train

import torch
import torch._dynamo  # an optimiser would load it, in every trial
import yaml

LIMIT = 20  # seconds of a trial
MEMORY = 2**30  # bytes more than the process has
SMALL = """
--preset quick data.name=fuzz data.source=texts data.validation_kb=1 eval.data=pairs
tokenizer.vocab_size=330 tokenizer.model=own.model
model.hidden_size=8 model.num_hidden_layers=2 model.num_attention_heads=2 model.intermediate_size=8
model.max_position_embeddings=64
train.batch_size=2 train.gradient_accumulation_steps=1 train.optimizer=muon train.sample_tokens=0
train.dtype=float32 train.device=cpu train.eval_windows=2 train.out=run""".split()
SCORE = ["ckpt.pt", "--data", "pairs", "--device", "cpu"]

# ---------------------------------------------------------------------------------------------------------------------
# Mutations: (rng, bytes) -> bytes

PIECES = [b"\0", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xff\xff\x7f", bytes(8), b"\xff" * 8]
PIECES += [b"\r\n", b"\n", b"\t", b'"', b"\\", b"&a ", b"*a", b"<<: ", b"[" * 3000, b"-1", b"1e999", b"NaN", b"null"]
VALUES = [None, True, -1, 0, 3, 2**63, 10**400, -0.5, 1e308, float("nan"), "", "x", "\0", "é" * 500, [], [[]], {}]


def damage(rng, data):
    """A few bytes flipped, removed, doubled, replaced by a piece or pushed back by one; or the rest is cut off."""
    at = rng.randrange(max(1, len(data)))
    end = at + rng.choice((1, 1, 2, 8, 16, 1000))
    part = data[at:end]
    flipped = bytes([part[0] ^ 1 << rng.randrange(8)]) + part[1:] if part else b"?"
    new = rng.choice((flipped, flipped, b"", part * 2, rng.choice(PIECES), rng.choice(PIECES) + part))
    return data[:at] + new + (b"" if rng.random() < 0.15 else data[end:])


def change(rng, data):
    """Half of the time the bytes of JSON or YAML, else a value: removed, replaced, or the one of another key."""
    if rng.random() < 0.5:
        return damage(rng, data)
    tree = yaml.safe_load(data)  # JSON is YAML
    places, todo = [], [tree]
    while todo:
        node = todo.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                todo.append(node[key])
    (node, key), (other, place) = rng.choice(places), rng.choice(places)
    if rng.random() < 0.25:
        del node[key]
    else:
        node[key] = rng.choice((rng.choice(VALUES), copy.deepcopy(other[place])))
    return json.dumps(tree).encode()


def change_line(rng, data):
    lines = data.splitlines()
    i = rng.randrange(len(lines))
    lines[i] = change(rng, lines[i])
    return b"\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# What reads the files, and what is in those with a checksum


class Kind(NamedTuple):
    path: str
    mutate: Callable
    read: Callable  # runs the commands that read it
    content: Callable | None = None  # what is in its bytes, if a checksum protects that


def kinds():
    """{name: Kind}"""

    def training(*overrides):
        return lambda: train.main([*SMALL, *overrides])

    def preparing(*overrides):
        return lambda: prepare.main([*SMALL, "--replace", *overrides])

    def use_checkpoint():
        eval_blimp.main(SCORE)
        sample.main(["ckpt.pt", "--max-tokens", "3"])
        export.main(["ckpt.pt", "exported"])

    def use_folder():
        export.main(["--from-hf", "hf", "converted.pt"])
        checkpoint.load_model("converted.pt")

    def tensors(data):
        return torch.load(io.BytesIO(data), weights_only=True)

    anew = training("train.resume=never", "train.max_steps=1")
    return {
        "config.yaml": Kind("config.yaml", change, lambda: settings.load_config(None, (), "config.yaml")),
        "ckpt.pt": Kind("ckpt.pt", damage, use_checkpoint, tensors),
        "last.pt": Kind("run/last.pt", damage, training("train.max_steps=3"), tensors),
        "meta.json": Kind("data/fuzz/meta.json", damage, anew, json.loads),
        "train.bin": Kind("data/fuzz/train.bin", damage, anew, bytes),
        "val.bin": Kind("data/fuzz/val.bin", damage, anew, bytes),
        "tokenizer.model": Kind("data/fuzz/tokenizer.model", damage, anew, bytes),
        "own tokenizer": Kind("own.model", damage, preparing()),
        "text": Kind("texts/one.txt", damage, preparing()),
        "text for a tokenizer": Kind("texts/one.txt", damage, preparing("tokenizer.model=null")),
        "pairs": Kind("pairs/agreement.jsonl", change_line, lambda: eval_blimp.main(SCORE)),
        "scores.json": Kind("scores.json", damage, lambda: export.main(["ckpt.pt", "x", "--blimp=scores.json"])),
        "hf config.json": Kind("hf/config.json", change, use_folder),
        "hf model.safetensors": Kind("hf/model.safetensors", damage, use_folder),
        "hf tokenizer.model": Kind("hf/tokenizer.model", damage, use_folder),
    }


def make_good_files():
    """One good file of every kind, in the current folder."""
    os.makedirs("texts")
    os.makedirs("pairs")
    text = [line for line in pocket_english.text(1500, seed=0) if line]
    pathlib.Path("texts/one.txt").write_text("\n".join(text) + "\n")
    pair = {"sentence_good": "The cat is old.", "sentence_bad": "The cat are old.", "UID": "agreement"}
    rows = [json.dumps(pair | {"pairID": str(i), "linguistics_term": "agreement", "field": "syntax"}) for i in range(3)]
    pathlib.Path("pairs/agreement.jsonl").write_text("\n".join(rows) + "\n")
    pathlib.Path("own.model").write_bytes(tokenizer.train(text, 320).model_bytes)
    plain = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))  # in a comment, damage does nothing
    pathlib.Path("config.yaml").write_text(yaml.safe_dump(plain))
    prepare.main(SMALL)
    train.main([*SMALL, "train.max_steps=2"])
    shutil.copy("run/ckpt.pt", "ckpt.pt")
    export.main(["ckpt.pt", "hf"])
    eval_blimp.main([*SCORE, "--json", "scores.json"])


# ---------------------------------------------------------------------------------------------------------------------
# Trials


def in_child(read, limit=None):
    """(exit status or minus the signal, output) of `read` in a process of its own: 0 read, 2 refused, 1 a traceback."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            os.environ["PATH"] = ""  # no git, which a checkpoint's provenance asks, each time
            sys.modules["matplotlib.figure"] = None  # nor curves.png
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(limit or LIMIT)
            with open("/proc/self/statm") as f:
                used = int(f.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
            read()
            status = 0
        except UserError:
            status = 2
        except BaseException:
            os.write(2, traceback.format_exc().encode("utf-8", "replace"))
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open("output", encoding="utf-8", errors="replace") as f:
        return status, f.read()


def trial(good, kind, data):
    """(outcome, the last lines of what was written) for folder `good` with `data` in its file of that kind."""
    original = pathlib.Path(good, kind.path).read_bytes()
    shutil.copytree(good, "trial")
    try:
        os.chdir("trial")
        pathlib.Path(kind.path).write_bytes(data)
        status, output = in_child(kind.read)
    finally:
        os.chdir("..")
        shutil.rmtree("trial")
    outcome = {0: "accepted", 2: "refused", -signal.SIGALRM: "hang"}.get(status, "traceback")
    if outcome == "accepted" and kind.content and not same(kind.content(data), kind.content(original)):
        outcome = "changed"
    return outcome, f"status {status}: " + " | ".join(output.splitlines()[-4:])


def fuzz(name, kind, trials, seed):
    """How many of the trials of one kind failed."""
    good = pathlib.Path("good", kind.path).read_bytes()
    if trial("good", kind, good)[0] != "accepted":
        raise RuntimeError(f"{name}: the good file is not read")
    counts = collections.Counter(accepted=0, refused=0)
    for number in range(trials):
        outcome, words = trial("good", kind, kind.mutate(random.Random(f"{seed} {name} {number}"), good))
        counts[outcome] += 1
        if outcome not in ("accepted", "refused"):
            print(f"FAILURE {name}, trial {number}: {outcome}, {words}")
    print(f"{name:<22}" + " ".join(f"{outcome} {count}" for outcome, count in counts.items()), flush=True)
    return trials - counts["accepted"] - counts["refused"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000, help="of each kind")
    parser.add_argument("--kinds", help="some of them, with commas between")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    known, here = kinds(), os.getcwd()
    chosen = args.kinds.split(",") if args.kinds else known
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.mkdir(os.path.join(folder, "good"))
            os.chdir(os.path.join(folder, "good"))
            status, output = in_child(make_good_files, 20 * LIMIT)  # nothing is left of it here: threads, modes
            if status:
                raise RuntimeError(output)
            os.chdir(folder)
            failures = sum(fuzz(name, known[name], args.trials, args.seed) for name in chosen)
        finally:
            os.chdir(here)
    print(f"failures: {failures}")
    return 1 if failures else 0


if __name__ == "__main__":
    cli.run(main)
