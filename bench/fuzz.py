"""Corrupts every kind of input file and sees what reads it: refused in a line, harmless, or a bug.

    python bench/fuzz.py --trials 2000 [--kinds meta.json,ckpt.pt] [--seed 0] [--json fuzz.json] [--keep FOLDER]

A trial changes a good file (bits, bytes, slices; in JSON, YAML and checkpoints also values and keys of the content; in archives the
content under a checksum made right again) and gives it to what reads such files. The outcome is one of
    refused     UserError: the user sees one `error:` line
    same        accepted, and what was read is what the good file holds
    changed     accepted, and something else was read
    traceback   any other exception, or the process died (a gigabyte more than it had is all the memory it gets)
    hang        more than 10 seconds
Tracebacks and hangs are failures. So is `changed`, where a checksum protects the file: ckpt.pt, last.pt, and a prepared folder's
meta.json, train.bin, val.bin and tokenizer.model. It is none for config.yaml, a corpus, minimal pairs (jsonl, and BLiMP.zip, whose
SHA-256 is checked before it is unpacked), a tokenizer or Hugging Face folder that the user brings, scores.json and pairs.csv, nor for
the `rebuilt` checkpoints, whose checksums were made right: any content is as good as another there, as long as it can be used.
"""
import argparse
import contextlib
import copy
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import types
import zipfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
import yaml

import eval_blimp
import export
import model
import prepare
import tokenizer
import train
from lab import checkpoint, commands, files
from lab import pairs as blimp_pairs
from lab import settings as configuration
from lab.files import UserError

LIMIT, MEMORY = 10, 2**30           # seconds of a trial, bytes more than the process had
OUTCOMES = ("refused", "same", "changed", "traceback", "hang")
SMALL = ["data.name=fuzz", "data.source=texts", "data.validation_kb=1", "eval.data=pairs", "tokenizer.vocab_size=330", "tokenizer.model=own.model",
         "model.hidden_size=8", "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.intermediate_size=8", "model.max_position_embeddings=64",
         "train.batch_size=2", "train.gradient_accumulation_steps=1", "train.max_steps=3", "train.optimizer=muon", "train.ema=0.9", "train.sample_tokens=0",
         "train.dtype=float32", "train.device=cpu", "train.eval_windows=2", "train.out=run"]
PAIRS = [{"sentence_good": f"The {a} is {b}.", "sentence_bad": f"The {a} are {b}.", "UID": "agreement", "linguistics_term": "agreement", "field": "morphology",
          "pairID": str(i), "one_prefix_prefix": f"The {a}", "one_prefix_word_good": "is", "one_prefix_word_bad": "are"}
         for i, (a, b) in enumerate([("cat", "old"), ("man", "tall"), ("tree", "green")])]

# ---------------------------------------------------------------------------------------------------------------------
# Mutations: (rng, bytes) -> bytes

NUMBERS = [b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"0.1", b"null", b"true", b'""', b"[]", b"{}"]
PIECES = [b"\0", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n", b"\n", b'"', b"\\", b"&a ", b"*a", b"<<: ", b"!!int ",
          b"\xe2\x96\x81", b" ", b"\t", b"[" * 3000, b'{"a":' * 3000]
EDGES = [struct.pack(form, n) for form in ("<H", "<I", "<Q", ">I") for n in (0, 1, 0x7F, 0xFFFF, 0x8000)] + [b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", bytes(8)]
VALUES = [None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**70, 10**400, 0.0, -0.5, 1e308, float("nan"), float("inf"),
          "", "x", "\0", "é" * 500, "1", "nan", [], [1], [[]], {}, {"a": 1}, ["a"] * 50]
TENSORS = [torch.zeros(0), torch.zeros(3), torch.zeros(()), torch.full((8, 8), float("nan")), torch.zeros(1).expand(1000, 1000),
           torch.zeros(8, 8, dtype=torch.int64), torch.zeros(8, 8, dtype=torch.complex64), torch.zeros(8, 8).to_sparse(), torch.zeros(8, 8, device="meta"),
           torch.zeros(8, 8, dtype=torch.float8_e5m2), torch.full((330, 8), 1e300, dtype=torch.float64)]


def damage(rng, data):
    """One to four changes of bytes, anywhere."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = damage_once(rng, data)
    return data


def damage_once(rng, data):
    a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    if rng.random() < 0.7:
        b = min(len(data), a + rng.randrange(1, 17))                    # most slices are short
    c, bit = rng.randrange(len(data) + 1), bytearray(data)
    if a < len(data):
        bit[a] ^= 1 << rng.randrange(8)
    edge, digits = rng.choice(EDGES), [i for i in range(a, min(len(data), a + 200)) if data[i:i + 1].isdigit()]
    return rng.choice((
        lambda: bytes(bit),
        lambda: bytes(bit),
        lambda: data[:a],                                               # cut short
        lambda: data[:a] + data[b:],
        lambda: data[:a] + rng.randbytes(rng.randrange(1, 9)) + data[a:],
        lambda: data[:c] + data[a:b] + data[c:],                        # a slice there twice
        lambda: data[:a] + rng.choice(PIECES) + data[a:],
        lambda: data[:a] + edge + data[a + len(edge):],
        lambda: data[:digits[0]] + rng.choice(NUMBERS) + data[digits[0] + 1:] if digits else bytes(bit),
        lambda: data[:a] + data[a:b][::-1] + data[b:]))()



def change(rng, tree, values=VALUES):
    """One to three nodes of nested dictionaries and lists replaced, removed, swapped or added, in place; returns the tree."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        nodes, todo = [], [tree]
        while todo:
            node = todo.pop()
            keys = list(node) if isinstance(node, dict) else range(len(node))
            nodes += [(node, key) for key in keys]
            todo += [node[key] for key in keys if isinstance(node[key], (dict, list))]
        if not nodes:
            return tree
        (node, key), (other, place) = rng.choice(nodes), rng.choice(nodes)
        match rng.randrange(8):
            case 0:
                del node[key]
            case 1 | 2:
                node[key] = copy.deepcopy(other[place])
            case 3 if isinstance(node, dict):
                node[rng.choice(("new", "", str(place), "__class__"))] = node[key]
            case _:
                node[key] = copy.deepcopy(rng.choice(values))
    return tree


def change_json(rng, data):
    if rng.random() < 0.5:
        return damage(rng, data)
    with contextlib.suppress(RecursionError):
        return json.dumps(change(rng, json.loads(data))).encode()


def change_yaml(rng, data):                                             # JSON is YAML
    return damage(rng, data) if rng.random() < 0.5 else json.dumps(change(rng, yaml.safe_load(data))).encode()


def change_lines(rng, data):
    lines = data.splitlines()
    i = rng.randrange(len(lines))
    lines[i] = change_json(rng, lines[i])
    return b"\n".join(lines)


def rebuild_zip(rng, data, method=zipfile.ZIP_STORED):
    """The archive with one member's content damaged, removed, renamed or there twice, and every checksum right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        chosen = rng.choice(old.namelist()) if rng.random() < 0.5 else max(old.namelist(), key=lambda n: n.endswith("data.pkl"))
        for name in old.namelist():
            content, action = old.read(name), rng.randrange(12) if name == chosen else None
            if action != 0:
                new.writestr(name + "x" if action == 1 else "../" + name if action == 2 else name, damage(rng, content) if action and action > 2 else content)
            if action == 11:
                new.writestr(name + "2", content)
    return out.getvalue()


def rebuild_checkpoint(rng, data):
    if rng.random() < 0.4:
        return rebuild_zip(rng, data)
    tree = torch.load(io.BytesIO(data), weights_only=True)
    part = tree[rng.choice(sorted({"weights", "provenance", "model", "training"} & tree.keys()))] if rng.random() < 0.7 else tree
    out = io.BytesIO()
    change(rng, part, VALUES + TENSORS)
    torch.save(tree, out)
    return out.getvalue()


def change_safetensors(rng, data):
    """Half of the time the header's content changes and its length is right."""
    if rng.random() < 0.5:
        return damage(rng, data)
    size = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(change(rng, json.loads(data[8:8 + size]))).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + size:]


# ---------------------------------------------------------------------------------------------------------------------
# What reads them: each returns what was read


def plain(x):
    """x as text that two equal things share: tensors and bytes with all their digits."""
    if isinstance(x, torch.Tensor):
        return f"{x.dtype}{tuple(x.shape)}{x.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes().hex()}"
    if isinstance(x, dict):
        return "{" + ",".join(f"{plain(k)}:{plain(v)}" for k, v in x.items()) + "}"
    return "[" + ",".join(map(plain, x)) + "]" if isinstance(x, (list, tuple)) else repr(x)


def settings():
    return configuration.load_config("quick", SMALL, os.path.join(ROOT, "config.yaml"))


def read_checkpoint(path="ckpt.pt"):
    """As sample.py, eval_blimp.py and export.py do, what they tell of its origin included."""
    net, ckpt = checkpoint.load_model(path)
    net(torch.ones(1, 2, dtype=torch.int64))
    eval_blimp.find_data("pairs", ckpt.provenance.get("data") or {})
    export.model_card(ckpt, 1, "name", None, "mit")
    return ckpt.config, ckpt.weights, ckpt.tokenizer.model_bytes, ckpt.provenance


def continue_run(config):
    run = train.Run(copy.deepcopy(config), train.World())
    train.resume(run)
    state = plain([dict(run.model.named_parameters()), run.ema, [o.state_dict() for o in run.optimizers], [getattr(run, key) for key in train.STATE]])
    train.loop(run, types.SimpleNamespace(caught=None))
    return state, dict(run.model.named_parameters())


def read_corpus(config):
    windows = train.load_data(config, config.model.max_position_embeddings)
    return windows[0].tokens.tobytes(), windows[1].tokens.tobytes(), windows[2], windows[3].model_bytes


def make_corpus(config):
    shutil.rmtree(config.data_dir, ignore_errors=True)
    prepare.find_and_prepare(config)
    return read_corpus(config)


def read_tokenizer():
    tok = tokenizer.load("own.model")
    text = "The cat sat. ▁ 🙂 123\n"
    tok.decode(tok.encode(text))
    with contextlib.suppress(UserError):
        export.tokenizer_files(tok, 16)
    return tok.model_bytes, tok.encode_batch([text, "A dog"], 1)


def read_hf():
    export.import_folder("hf", "converted.pt", force=True)
    return read_checkpoint("converted.pt")


def read_blimp():
    shutil.rmtree("unpacked", ignore_errors=True)
    prepare.unpack("BLiMP.zip", "unpacked")
    return blimp_pairs.read_pairs("unpacked")


def read_scores():
    export.export_folder("ckpt.pt", "exported", blimp=export.read_scores("scores.json"), force=True)
    return open("exported/README.md", encoding="utf-8").read()


def good_files():
    """Makes one good file of every kind in the current folder."""
    config = settings()
    os.makedirs("texts")
    os.makedirs("pairs")
    rng = random.Random(0)
    for name in ("one", "two"):
        with open(f"texts/{name}.txt", "w", encoding="utf-8") as f:
            f.writelines(f"The {rng.choice(('cat', 'dog', 'man'))} {rng.choice(('sees', 'likes'))} {rng.randrange(100)} {name} trees.\n" + "\n" * (i % 9 == 0) for i in range(120))
    with open("pairs/agreement.jsonl", "w", encoding="utf-8") as f:
        f.write("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    with open("own.model", "wb") as f:
        f.write(tokenizer.train((line.rstrip("\n") for line in open("texts/one.txt", encoding="utf-8")), 290).model_bytes)
    with zipfile.ZipFile("BLiMP.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for uid in ("agreement", "islands"):
            z.write("pairs/agreement.jsonl", f"data/{uid}.jsonl")
    with open("config.yaml", "w", encoding="utf-8") as f:               # without its comments, where damage does nothing
        f.write(re.sub(r"\s*#.*", "", open(os.path.join(ROOT, "config.yaml"), encoding="utf-8").read()))
    prepare.find_and_prepare(config)
    half = copy.deepcopy(config)
    half.train.max_steps = 2
    continue_run(half)
    for name in ("ckpt.pt", "last.pt"):
        shutil.copy(os.path.join("run", name), name)
    export.export_folder("ckpt.pt", "hf")
    eval_blimp.main(["ckpt.pt", "--data", "pairs", "--device", "cpu", "--json", "scores.json"])


def kinds():
    """{name: (file, mutation, what reads it, whether reading something else is a failure)}"""
    config, own = settings(), settings()
    own.tokenizer.model, own.tokenizer.vocab_size = None, 330
    corpus, resume = lambda: read_corpus(config), lambda: continue_run(config)
    return {
        "config.yaml": ("config.yaml", change_yaml, lambda: configuration.load_config(None, (), "config.yaml"), False),
        "ckpt.pt": ("ckpt.pt", damage, read_checkpoint, True),
        "ckpt.pt rebuilt": ("ckpt.pt", rebuild_checkpoint, read_checkpoint, False),
        "last.pt": ("run/last.pt", damage, resume, True),
        "last.pt rebuilt": ("run/last.pt", rebuild_checkpoint, resume, False),
        "meta.json": ("data/fuzz/meta.json", change_json, corpus, True),
        "train.bin": ("data/fuzz/train.bin", damage, corpus, True),
        "val.bin": ("data/fuzz/val.bin", damage, corpus, True),
        "tokenizer.model": ("data/fuzz/tokenizer.model", damage, corpus, True),
        "tokenizer.model brought": ("own.model", damage, read_tokenizer, False),
        "corpus text": ("texts/one.txt", damage, lambda: make_corpus(config), False),
        "corpus text and tokenizer": ("texts/one.txt", damage, lambda: make_corpus(own), False),
        "pairs.jsonl": ("pairs/agreement.jsonl", change_lines, lambda: blimp_pairs.read_pairs("pairs"), False),
        "BLiMP.zip": ("BLiMP.zip", damage, read_blimp, False),
        "BLiMP.zip rebuilt": ("BLiMP.zip", lambda rng, data: rebuild_zip(rng, data, zipfile.ZIP_DEFLATED), read_blimp, False),
        "scores.json": ("scores.json", change_json, read_scores, False),
        "hf config.json": ("hf/config.json", change_json, read_hf, False),
        "hf model.safetensors": ("hf/model.safetensors", change_safetensors, read_hf, False),
        "hf tokenizer.model": ("hf/tokenizer.model", damage, read_hf, False),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Trials


def mutant(kind, mutation, good, n, seed):
    rng = random.Random(f"{seed} {kind} {n}")
    return mutation(rng, good)


def child(pipe, kind, first, trials, seed, path, mutation, read):
    """Trials first, first + 1, ...; writes a line `number outcome words` about each into the pipe."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.environ["PATH"] = ""                                             # no git, which provenance asks
    sys.modules["matplotlib.figure"] = None                             # no curves.png
    model.Model.init_weights = lambda self: None                        # weights are always read from a file here, and drawing them is most of the time
    with open(path, "rb") as f:
        good = f.read()
    with contextlib.suppress(OSError):                                  # Linux
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    expected = plain(read())
    for n in range(first, trials):
        os.write(pipe, f"{n} start\n".encode())
        outcome, words = "refused", ""
        with open(path, "wb") as f:
            f.write(mutant(kind, mutation, good, n, seed))
        try:
            outcome = "same" if plain(read()) == expected else "changed"
        except UserError as e:
            words = str(e)
        except BaseException as e:
            at = traceback.extract_tb(e.__traceback__)
            own = next((f for f in reversed(at) if os.path.dirname(f.filename) == os.path.dirname(os.path.abspath(train.__file__))), at[-1])
            outcome, words = "traceback", f"{type(e).__name__}: {str(e)[:100]} at {os.path.basename(own.filename)}:{own.lineno}"
        os.write(pipe, f"{n} {outcome} {' '.join(words.split())[:300]}\n".encode("utf-8", "replace"))


def fuzz(kind, trials, seed, path, mutation, read):
    """[(outcome, words)] of trials 0, 1, ...: in a child process, and in another one after a hang or a death."""
    results, good = [], open(path, "rb").read()
    while len(results) < trials:
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(ours)
                child(theirs, kind, len(results), trials, seed, path, mutation, read)
                status = 0
            finally:
                os._exit(status)
        os.close(theirs)
        text, started, died = b"", False, "hang"
        while select.select([ours], [], [], LIMIT + 20 * (not started))[0]:
            if not (new := os.read(ours, 65536)):
                died = "traceback"
                break
            *lines, text = (text + new).split(b"\n")
            for line in lines:
                _, outcome, *words = line.decode().split(" ", 2)
                started = True
                if outcome != "start":
                    results.append((outcome, words[0] if words else ""))
        os.close(ours)
        if died == "hang":
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with open(path, "wb") as f:
            f.write(good)
        if not started:
            raise RuntimeError(f"{kind}: the good file itself is not read, status {status}")
        if len(results) < trials:
            results.append((died, f"ended with status {status}"))
    return results


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000, help="of each kind")
    parser.add_argument("--kinds", help="some of them, with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="the table, and every failure")
    parser.add_argument("--keep", metavar="FOLDER", help="write the files that failed")
    args = parser.parse_args(argv)
    here, rows, failures = os.getcwd(), [], []
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None     # memory: waiting for a disk finds no bugs
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                good_files()
            known = kinds()
            chosen = args.kinds.split(",") if args.kinds else list(known)
            if unknown := set(chosen) - set(known):
                raise UserError(f"--kinds: no `{unknown.pop()}`; known: {', '.join(known)}")
            print(f"{'kind':<28}{'trials':>7}" + "".join(f"{o:>10}" for o in OUTCOMES) + f"{'seconds':>9}", flush=True)
            for kind in chosen:
                path, mutation, read, protected = known[kind]
                start, good = time.time(), open(path, "rb").read()
                results = fuzz(kind, args.trials, args.seed, path, mutation, read)
                counts = {o: sum(outcome == o for outcome, _ in results) for o in OUTCOMES}
                rows.append({"kind": kind, "trials": len(results), **counts, "seconds": round(time.time() - start, 1)})
                print(f"{kind:<28}{len(results):>7}" + "".join(f"{c:>10}" for c in counts.values()) + f"{time.time() - start:>9.1f}", flush=True)
                for n, (outcome, words) in enumerate(results):
                    if outcome in ("traceback", "hang") or (outcome == "changed" and protected):
                        failures.append({"kind": kind, "trial": n, "outcome": outcome, "words": words})
                        if args.keep:
                            os.makedirs(os.path.join(here, args.keep), exist_ok=True)
                            with open(os.path.join(here, args.keep, f"{kind}.{n}".replace(" ", "-")), "wb") as f:
                                f.write(mutant(kind, mutation, good, n, args.seed))
        finally:
            os.chdir(here)
    for f in failures[:30]:
        print(f"FAILURE {f['kind']} trial {f['trial']}: {f['outcome']} {f['words']}")
    print(f"trials: {sum(r['trials'] for r in rows)}\nfailures: {len(failures)}")
    if args.json:
        files.atomic_write(args.json, json.dumps({"seed": args.seed, "kinds": rows, "failures": failures}, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    commands.run(main)
