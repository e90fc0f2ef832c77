"""Text -> data/NAME/{train,val}.bin, tokenizer.model, meta.json, and BLiMP beside them.

    python prepare.py                                        # BabyLM strict-small from the Hugging Face Hub, 10 M words
    python prepare.py --preset llama-26m data.source=texts/  # a folder of *.train / *.txt
    python prepare.py --preset quick                         # Pocket English, no network

1. find:  download (retried, checked), a local folder, or the built-in grammar
2. clean: the steps of lab/text/cleaning.py that data.clean names
3. split: each source into blocks of a few kB of consecutive lines, shuffled by (data.seed, source); the first ones are
   validation
4. mix:   round robin over the sources, equally many bytes of each, so that any stretch of the stream holds all of them
5. tokenise: SentencePiece BPE trained on the training text alone; BOS before every line (or document); uint16

Any budget takes the same blocks in the same order, so 2 MB of a corpus are the beginning of its 10 MB, and all budgets
share one validation text, of which no line occurs in the training text of any budget. The same settings give the same
bytes.
"""

import argparse
import collections
import functools
import glob
import heapq
import itertools
import json
import os
import random
import re
import time
from typing import NamedTuple

from lab import cli
from lab.files import UserError, load_tokenizer
from lab.settings import parse_args
from lab.text import corpus, pocket_english
from lab.text.cleaning import CLEANING, clean
from lab.text.cores import Cores
from lab.text.download import DownloadError, download, unpack
from lab.text.sources import BABYLM, DOWNLOADS, PART, babylm_source, folder_source, pocket_source, sha256
import tokenizer

FORMAT = 1  # of meta.json
BLOCK = 4000  # bytes of consecutive lines that stay together: some windows of context
SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[\"'A-Z])")  # rough: it also cuts after "Mr."
PROBE = "  Two  spaces,\ta tab, ▁ and 🙂\n"
BLIMP_COMMIT = "3e56b06fcabca9b30822fc66435fca6b1aa40bb1"
BLIMP_URL = f"https://raw.githubusercontent.com/alexwarstadt/blimp/{BLIMP_COMMIT}/BLiMP.zip"
BLIMP_SHA256 = "172a1a714d72e72a89e8384dd531483f3d0f8a9aee3d33dccaf7992d8cecbb73"


# 1. find is lab/text/sources.py, 2. clean is lab/text/cleaning.py.
# ---------------------------------------------------------------------------------------------------- 3. split


class Block(NamedTuple):
    """Consecutive lines of UTF-8, joined by newlines; an empty one is a boundary of documents.

    size: bytes of the lines with their newlines; a boundary has none.
    """

    text: bytes
    size: int

    @classmethod
    def of(cls, lines):
        return cls(b"\n".join(lines), sum(map(line_size, lines)))

    def lines(self):
        return self.text.split(b"\n")


def line_size(line):
    return len(line) + 1 if line else 0


def blocks(parts):
    """Cuts a text into Blocks: at the first boundary after BLOCK bytes, or without one at twice that.

    Short texts get smaller blocks, so that a twentieth of any text can be put aside.
    """
    parts = iter(parts)
    first, total = [], 0
    while total < 200 * BLOCK and (part := next(parts, None)) is not None:
        first.append(part)
        total += sum(map(line_size, part.split(b"\n")))
    goal = min(BLOCK, total // 200)
    done, lines, size = [], [], 0
    for part in itertools.chain(first, parts):
        for line in part.removesuffix(b"\n").split(b"\n"):
            if line or (lines and lines[-1]):  # no boundary at the start or after another
                lines.append(line)
                size += line_size(line)
            if size and (size >= 2 * goal or (size >= goal and not line)):
                done.append(Block(b"\n".join(lines), size))
                lines, size = [], 0
    if size:
        done.append(Block(b"\n".join(lines), size))
    return done


def split(text_blocks, kb, seed, name):
    """(validation, training) blocks of one source, both in the order they will be used in. Depends on nothing else.

    Validation gets `kb` * 1000 bytes, at most a twentieth of the text.
    """
    text_blocks = list(text_blocks)
    random.Random(f"{seed} {name}").shuffle(text_blocks)
    left = min(1000 * kb, sum(block.size for block in text_blocks) / 20)
    held_out, rest = [], []
    for block in text_blocks:
        if block.size <= left:
            left -= block.size
            held_out.append(block)
        else:
            rest.append(block)
    return held_out, rest


def seen_lines(held_out, pools):
    """The lines of held-out blocks that are also in training text: validation must be new, and "Yeah." is not."""
    candidates = {line for block in held_out for line in block.lines() if line}
    seen = set()
    for pool in pools:
        for block in pool:
            seen |= candidates.intersection(block.lines())
    return seen


def without(text_blocks, lines):
    """The blocks without these lines, and without the blocks that have no others."""
    kept = []
    for block in text_blocks:
        rest = [line for line in block.lines() if line not in lines]
        if any(rest):
            kept.append(Block.of(rest))
    return kept


# ---------------------------------------------------------------------------------------------------- 4. mix


def take(text_blocks, budget):
    """Whole lines from the start of the blocks, up to `budget` bytes (null: all).

    Returns the blocks, and whether they are fewer bytes than that for want of text.
    """
    if budget is None:
        return text_blocks, False
    taken = []
    for block in text_blocks:
        if block.size <= budget:
            taken.append(block)
            budget -= block.size
            continue
        lines = []
        for line in block.lines():
            if line_size(line) > budget:
                break
            lines.append(line)
            budget -= line_size(line)
        if any(lines):
            taken.append(Block.of(lines))
        return taken, False
    return taken, budget > 0


def interleave(sources):
    """Lists of blocks -> one list; the next is always of the list that has given the smallest share of its bytes."""
    totals = [sum(block.size for block in source) for source in sources]
    rests = [iter(source) for source in sources]
    queue = [(0.0, i, 0) for i in range(len(sources))]  # share given, which list, bytes given
    mixed = []
    while queue:
        _, i, given = queue[0]
        block = next(rests[i], None)
        if block:
            mixed.append(block)
            given += block.size
            heapq.heapreplace(queue, (given / totals[i], i, given))
        else:
            heapq.heappop(queue)
    return mixed


# ---------------------------------------------------------------------------------------------------- 5. tokenise


def documents(text, boundary):
    """A block's text -> the texts that get a BOS each: its lines, the sentences of its lines, or the lines between two
    boundaries together."""
    if boundary == "document":
        texts = [group.strip("\n") for group in text.split("\n\n")]
    elif boundary == "sentence":
        texts = [sentence for line in text.split("\n") for sentence in SENTENCE_END.split(line)]
    else:
        texts = text.split("\n")
    return [text for text in texts if text]


def batches(text_blocks):
    """The texts of the blocks, in lists of about PART bytes: what one process works on at a time."""
    batch, size = [], 0
    for block in text_blocks:
        batch.append(block.text)
        size += block.size
        if size >= PART:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def count_words(texts):
    lines = b"\n".join(texts).decode().split("\n")
    return tokenizer.count_words(lines)


def train_tokenizer(text_blocks, vocab_size, fallback, each):
    """fallback: take a smaller vocabulary if the text supports no `vocab_size` pieces."""
    print("training the tokenizer", flush=True)
    counts = collections.Counter()
    for part in each(count_words, batches(text_blocks)):
        counts.update(part)
    try:
        return tokenizer.train_on_counts(counts, vocab_size)
    except tokenizer.VocabularyError as e:
        if not fallback:
            raise UserError(f"tokenizer.{e}") from None
        print(f"NOTICE: this text supports no {vocab_size} pieces; the vocabulary has {e.possible}")
        return tokenizer.train_on_counts(counts, e.possible)
    except ValueError as e:
        raise UserError(f"data.source: {e}") from None


encoder = functools.lru_cache(1)(tokenizer.CorpusEncoder)  # one for all batches of a process


def encode_batch(model_bytes, boundary, seed, texts):
    """The texts of some blocks -> BOS and the tokens of each document, as bytes of a .bin file.

    seed: of BPE dropout, or None for the usual tokens.
    """
    every = [document for text in texts for document in documents(text.decode(), boundary)]
    return encoder(model_bytes).encode(every, seed and random.Random(seed))


def encode(tok, text_blocks, data, each, copies=1):
    """The tokens of the blocks, `copies` times one after the other: the first time, and every second, as they are."""
    tokens = bytearray()
    for copy in range(copies):
        seed = f"{data.seed} {copy}" if copy % 2 else None
        for part in each(functools.partial(encode_batch, tok.model_bytes, data.boundary, seed), batches(text_blocks)):
            tokens += part
    return tokens


# ---------------------------------------------------------------------------------------------------- all of it


def count(text_blocks):
    return {
        "bytes": sum(block.size for block in text_blocks),
        "words": sum(len(block.text.decode().split()) for block in text_blocks),
        "lines": sum(sum(map(bool, block.lines())) for block in text_blocks),
    }


def build(config, tok, texts, fallback=False):
    """({file name: bytes}, meta) of a corpus from `texts`, a Source's.

    tok: a Tokenizer, or None to train one; fallback: as in train_tokenizer.
    """
    with Cores() as cores:
        held_out, pools, hashes = clean_and_split(config.data, texts, cores.map)
        seen = seen_lines(sum(held_out, []), pools.values())
        val = interleave([without(text_blocks, seen) for text_blocks in held_out])
        if not val:
            raise UserError(
                "data.source: too little text, a twentieth of it (or data.validation_kb) holds no line "
                "that the rest does not have; nothing is left to validate on"
            )
        parts, rows = budgeted(config.data, pools, hashes)
        train = interleave(parts)
        if tok is None:
            tok = train_tokenizer(train, config.tokenizer.vocab_size, fallback, cores.map)

        print("tokenising", flush=True)
        files = {"tokenizer.model": tok.model_bytes}
        meta = {"format": FORMAT, "name": config.data.name, "sources": rows}
        sizes = {key: sum(row[key] for row in rows) for key in ("bytes", "words", "lines")}
        copies = config.data.copies
        files["train.bin"] = encode(tok, train, config.data, cores.map, copies)
        files["val.bin"] = encode(tok, val, config.data, cores.map)
        for name, counts in (("train", sizes), ("val", count(val))):
            tokens = files[f"{name}.bin"]
            meta[name] = {**counts, "tokens": len(tokens) // 2, "sha256": sha256(tokens)}
    meta |= {
        "vocab_size": tok.vocab_size,
        "tokenizer_sha256": tok.sha256,
        "copies": copies,
        "tokens_per_word": meta["train"]["tokens"] / (copies * meta["train"]["words"]),
        "seed": config.data.seed,
        "boundary": config.data.boundary,
        "clean": config.data.clean,
    }
    return files, meta


def clean_and_split(data, texts, each):
    """(validation blocks of each source, {name: training blocks}, {name: sha256})"""
    print("reading and cleaning", flush=True)
    held_out, pools, hashes = [], {}, {}
    for name, read in texts.items():
        parts, digest = read()
        for other in hashes:
            if hashes[other] == digest:
                raise UserError(
                    f"data.source: `{other}` and `{name}` are the same text; remove one or leave it out of data.sources"
                )
        hashes[name] = digest
        text_blocks = blocks(clean(parts, data.clean, each))
        if not text_blocks:
            raise UserError(
                f"data.source: nothing of `{name}` is left after cleaning; "
                "leave it out of data.sources or change data.clean"
            )
        held, pools[name] = split(text_blocks, data.validation_kb, data.seed, name)
        held_out.append(held)
    return held_out, pools, hashes


def budgeted(data, pools, hashes):
    """(blocks of each source that fit its share of data.budget_mb, a row of meta.json for each)"""
    budget = None if data.budget_mb is None else int(1e6 * data.budget_mb / len(pools))
    parts, rows = [], []
    for name, pool in pools.items():
        part, short = take(pool, budget)
        if not part:
            raise UserError(f"data.budget_mb: `{name}` may give {budget} bytes, and its first line is longer; set more")
        parts.append(part)
        rows.append({"name": name, "budget_bytes": budget, **count(part), "short": short, "sha256": hashes[name]})
    return parts, rows


def prepare(config, source, replace=False, fallback=False):
    """Makes data/NAME/ what the settings say, or finds that it is already.

    UserError if it holds what other settings made, unless `replace`.
    """
    start = time.time()
    data, folder = config.data, config.data_dir
    tok = load_tokenizer(config.tokenizer.model) if config.tokenizer.model else None
    if tok and tok.decode(tok.encode(PROBE)) != PROBE:
        print(
            f"NOTICE: {config.tokenizer.model} DOES NOT GIVE BACK EVERY TEXT IT IS GIVEN; "
            "bits per byte are of the text it keeps"
        )
    if tok and data.copies > 1 and not tok.cuts_at_spaces:
        raise UserError(
            "data.copies: the other copies are cut by BPE within words, and this tokenizer.model works "
            "differently; leave tokenizer.model at null or data.copies at 1"
        )
    settings = {
        "format": FORMAT,
        "data.name": data.name,
        "data.source": source.name,
        "data.budget_mb": data.budget_mb,
        "data.validation_kb": data.validation_kb,
        "data.clean": data.clean,
        "data.boundary": data.boundary,
        "data.copies": data.copies,
        "data.seed": data.seed,
        "tokenizer.vocab_size": None if tok else config.tokenizer.vocab_size,
        "tokenizer.model": tok and f"sha256 {tok.sha256}",
        **source.inputs,
    }
    if meta := corpus.up_to_date(folder, settings, replace):
        report(meta, time.time() - start)
        print(f"{folder}: up to date")
        return
    if fallback and corpus.read_meta(folder).get("source") in BABYLM:
        raise UserError(
            f"{folder}: made from BabyLM, which cannot be downloaded now; "
            "Pocket English does not replace it: set another data.name, or data.source=pocket"
        )

    files, meta = build(config, tok, source.texts, fallback)
    pocket = source.name == "pocket"
    if pocket:
        for uid, pairs in pocket_english.pairs(data.seed).items():
            files[f"pairs/{uid}.jsonl"] = "".join(json.dumps(pair) + "\n" for pair in pairs)
    meta |= {"source": source.name, "corpus": source.title, "pairs": "pairs" if pocket else None, "settings": settings}
    report(corpus.write(folder, files, meta), time.time() - start)


def report(meta, seconds):
    print(f"{'source':<16}{'MB':>8}{'words':>12}{'lines':>10}")
    for row in meta["sources"]:
        note = f"  SHORT: its budget is {row['budget_bytes'] / 1e6:.2f} MB" if row["short"] else ""
        print(f"{row['name']:<16}{row['bytes'] / 1e6:>8.2f}{row['words']:>12,}{row['lines']:>10,}{note}")
    for part in ("train", "val"):
        row = meta[part]
        copies = f" in {meta['copies']} copies" if part == "train" and meta["copies"] > 1 else ""
        print(
            f"{part:<16}{row['bytes'] / 1e6:>8.2f}{row['words']:>12,}{row['lines']:>10,}  {row['tokens']:,} tokens"
            f"{copies}"
        )
    print(f"corpus: {meta['corpus']}")
    print(f"vocab_size: {meta['vocab_size']}")
    print(f"tokens_per_word: {meta['tokens_per_word']:.3f}")
    print(f"seconds: {seconds:.1f}")


def get_blimp(folder):
    """BLiMP into `folder` if no *.jsonl is there. Training works without it, so failure is a notice.

    SLLAMA_LAB_BLIMP_URL in the environment is the address of a mirror.
    """
    if glob.glob(os.path.join(glob.escape(folder), "*.jsonl")):
        return
    archive = os.path.join(DOWNLOADS, "BLiMP.zip")
    try:
        download(os.environ.get("SLLAMA_LAB_BLIMP_URL", BLIMP_URL), archive, BLIMP_SHA256)
        unpack(archive, folder)
    except UserError as e:
        print(
            f"NOTICE: THERE IS NO BLIMP IN {folder}, AND EVAL_BLIMP.PY NEEDS IT.\n  {e}\n"
            f"  Run prepare.py again, or put the archive's data/*.jsonl into {folder} yourself: {BLIMP_URL}"
        )


def find_and_prepare(config, replace=False):
    """data.source -> a prepared folder, and BLiMP but for Pocket English, which never asks the network."""
    name = config.data.source
    if name == "pocket":
        prepare(config, pocket_source(config), replace)
        return
    if name == "auto" and not replace and corpus.read_meta(config.data_dir).get("source") == "pocket":
        print("NOTICE: POCKET ENGLISH IS THERE IN PLACE OF BABYLM; --replace tries to download BabyLM again.")
        prepare(config, pocket_source(config), fallback=True)
        return
    try:
        if name == "auto":
            prepare(config, babylm_source(config, "babylm"), replace)
        elif name in BABYLM:
            prepare(config, babylm_source(config, name), replace)
        else:
            prepare(config, folder_source(config), replace)
    except DownloadError as e:
        if name != "auto":
            raise UserError(f"{e}. Without a network: data.source=pocket, or a folder of text") from None
        print(
            f"{e}\n\nNOTICE: BABYLM CANNOT BE DOWNLOADED. "
            f"POCKET ENGLISH, A SYNTHETIC LANGUAGE, TAKES ITS PLACE IN {config.data_dir}.\n"
        )
        prepare(config, pocket_source(config), replace, fallback=True)
        return
    get_blimp(config.eval.data)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Prepares a corpus in data/NAME/, and fetches BLiMP.")
    args, config = parse_args(parser, argv, model=False)
    for step in config.data.clean:
        if step not in CLEANING:
            raise UserError(f"data.clean: no step `{step}`; known: {', '.join(CLEANING)}")
    taken = [os.path.abspath(path) for path in (DOWNLOADS, config.eval.data)]
    if not re.fullmatch(r"[\w-][\w.-]*", config.data.name) or os.path.abspath(config.data_dir) in taken:
        raise UserError(
            f"data.name: `{config.data.name}` must be the name of a new folder in data/: "
            "letters, digits, - _ . and not that of the downloads or of eval.data"
        )
    try:
        find_and_prepare(config, args.replace)
    except OSError as e:  # whatever a disk can do
        raise UserError(f"{e.filename or config.data_dir}: {e.strerror or e}") from None
    print(f"folder: {config.data_dir}")
    print("next: " + config.command("train.py"))


if __name__ == "__main__":
    cli.run(main)
