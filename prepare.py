"""Text -> data/NAME/{train,val}.bin, tokenizer.model, meta.json, and BLiMP beside them.

    python prepare.py                                        # BabyLM strict-small from the Hugging Face Hub, 10 M words
    python prepare.py --preset llama-26m data.source=texts/  # a folder of *.train / *.txt
    python prepare.py --preset quick                         # Pocket English, no network

1. find:  download (retried, checked), a local folder, or the built-in grammar (lab/text/sources.py)
2. clean: the steps that data.clean names (lab/text/cleaning.py)
3. split: each source into blocks of a few kB of consecutive lines, shuffled by (data.seed, source); the first ones are
   validation
4. mix:   the sources take turns, so that any stretch of the stream holds the same share of each
5. tokenise: SentencePiece BPE trained on the training text alone; BOS before every line (or document); uint16

Any budget takes the same blocks in the same order, so 2 MB of a corpus are the beginning of its 10 MB, and all budgets
share one validation text; none of its lines occurs in the training text of any budget. The same settings give the same
bytes.
"""

import argparse
import collections
import functools
import hashlib
import itertools
import json
import os
import random
import re
import time
from typing import NamedTuple

from lab import cli, corpus
from lab.files import UserError, load_tokenizer
from lab.settings import parse_args
from lab.text.cleaning import CLEANING, PART, Cores, clean, in_parts
from lab.text.sources import BABYLM, DOWNLOADS, DownloadError, find, get_blimp
import tokenizer

FORMAT = 1  # of meta.json
BLOCK = 4000  # bytes of consecutive lines that stay together: a few windows of context
PROBE = "  Two  spaces,\ta tab, ▁ and 🙂\n"


# ---------------------------------------------------------------------------------------------------- 3. split


class Block(NamedTuple):
    """Consecutive lines of UTF-8, joined by newlines; an empty one is a boundary between documents.

    size: bytes of the lines with their newlines, boundaries not counted.
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


def size_of(text_blocks):
    return sum(block.size for block in text_blocks)


def blocks(parts):
    """A text, in parts of whole lines -> Blocks: cut at the first boundary after BLOCK bytes, or else at twice that.

    Short texts get smaller blocks, 200 of them, so that a twentieth of any text can be put aside.
    """
    lines = b"".join(parts).removesuffix(b"\n").split(b"\n")
    goal = min(BLOCK, sum(map(line_size, lines)) // 200)
    done, block, size = [], [], 0
    for line in lines:
        if line or (block and block[-1]):  # no boundary at the start or after another
            block.append(line)
            size += line_size(line)
        if size and (size >= 2 * goal or (size >= goal and not line)):
            done.append(Block.of(block))
            block, size = [], 0
    if size:
        done.append(Block.of(block))
    return done


def split(text_blocks, kb, seed, name):
    """(validation, training) blocks of one source, in the order of their use. No other source makes a difference.

    Validation gets `kb` * 1000 bytes, at most a twentieth of the text.
    """
    text_blocks = list(text_blocks)
    random.Random(f"{seed} {name}").shuffle(text_blocks)
    left = min(1000 * kb, size_of(text_blocks) / 20)
    held_out, rest = [], []
    for block in text_blocks:
        if block.size <= left:
            left -= block.size
            held_out.append(block)
        else:
            rest.append(block)
    return held_out, rest


def without(text_blocks, lines):
    """The blocks without these lines; a block that has no others is left out."""
    kept = []
    for block in text_blocks:
        rest = [line for line in block.lines() if line not in lines]
        if any(rest):
            kept.append(Block.of(rest))
    return kept


# ---------------------------------------------------------------------------------------------------- 4. mix


def take(text_blocks, budget):
    """The blocks' first whole lines, up to `budget` bytes."""
    taken = []
    for block in text_blocks:
        if block.size > budget:
            ends = itertools.accumulate(map(line_size, block.lines()))
            lines = [line for line, end in zip(block.lines(), ends) if end <= budget]
            return [*taken, Block.of(lines)] if any(lines) else taken
        taken.append(block)
        budget -= block.size
    return taken


def interleave(sources):
    """Lists of blocks -> one list; the next is always of the list that has given the smallest share of its bytes."""
    turns = []  # (share of its list that comes before the block, block)
    for source in sources:
        given, total = 0, size_of(source)
        for block in source:
            turns.append((given / total, block))
            given += block.size
    return [block for _, block in sorted(turns, key=lambda turn: turn[0])]


# ---------------------------------------------------------------------------------------------------- 5. tokenise


def in_batches(text_blocks):
    """The text of the blocks, about PART bytes at a time: what one process works on."""
    batch, size = [], 0
    for block in text_blocks:
        batch.append(block.text)
        size += block.size
        if size >= PART:
            yield b"\n\n".join(batch)
            batch, size = [], 0
    yield b"\n\n".join(batch)


def count_words(text):
    return tokenizer.count_words(text.decode().split("\n"))


def train_tokenizer(text_blocks, vocab_size, shrink, cores):
    """A Tokenizer of `vocab_size` pieces; with `shrink`, of fewer if the text does not support as many."""
    print("training the tokenizer", flush=True)
    counts = collections.Counter()
    for part in cores.map(count_words, in_batches(text_blocks)):
        counts.update(part)
    try:
        return tokenizer.train_on_counts(counts, vocab_size)
    except tokenizer.VocabularyError as e:
        if not shrink:
            raise UserError(f"tokenizer.{e}") from None
        print(f"NOTICE: this text does not support {vocab_size} pieces; the vocabulary has {e.possible}")
        return tokenizer.train_on_counts(counts, e.possible)
    except ValueError as e:
        raise UserError(f"data.source: {e}") from None


@functools.lru_cache(1)  # one for all batches of a process
def encoder(model_bytes):
    return tokenizer.CorpusEncoder(model_bytes)


def encode_batch(model_bytes, boundary, seed, text):
    """UTF-8 -> BOS and the tokens of each line or document, as bytes of a .bin file.

    seed: of BPE dropout, or None for the usual tokens.
    """
    parts = text.decode().split("\n\n" if boundary == "document" else "\n")
    texts = filter(None, (part.strip("\n") for part in parts))
    return encoder(model_bytes).encode(texts, random.Random(seed) if seed else None)


def encode(tok, text_blocks, data, cores, copies=1):
    """The tokens of the blocks, `copies` times over; copies 2, 4, ... are cut into other pieces by BPE dropout."""
    tokens = bytearray()
    for copy in range(copies):
        seed = f"{data.seed} {copy}" if copy % 2 else None
        encode_one = functools.partial(encode_batch, tok.model_bytes, data.boundary, seed)
        for part in cores.map(encode_one, in_batches(text_blocks)):
            tokens += part
    return tokens


# ---------------------------------------------------------------------------------------------------- all five


class Text(NamedTuple):
    """A source, cleaned and split into blocks; sha256: of its bytes before that."""

    name: str
    sha256: str
    val: list
    train: list


def clean_and_split(name, raw, data, cores):
    text_blocks = blocks(clean(in_parts(raw), data.clean, cores.map))
    if not text_blocks:
        raise UserError(f"data.source: cleaning leaves nothing of `{name}`; change data.clean or data.sources")
    return Text(name, sha256(raw), *split(text_blocks, data.validation_kb, data.seed, name))


def validation(texts):
    """The held-out blocks of all texts, mixed, without the lines that are trained on too: "Yeah." tests nothing."""
    held_out, seen = set(), set()
    for text in texts:
        for block in text.val:
            held_out.update(filter(None, block.lines()))
    for text in texts:
        for block in text.train:
            seen.update(held_out.intersection(block.lines()))
    val = interleave([without(text.val, seen) for text in texts])
    if not val:
        raise UserError("data.source: too little text to hold out a line that the rest does not have too; add some")
    return val


def training(texts, budget_mb):
    """(the training blocks of all texts, mixed, within the budget; a row of meta.json for each text)"""
    budget = None if budget_mb is None else int(1e6 * budget_mb / len(texts))
    taken, rows = [], []
    for text in texts:
        part = text.train if budget is None else take(text.train, budget)
        if not part:
            raise UserError(f"data.budget_mb: the first line of `{text.name}` is longer than its share, {budget} bytes")
        short = budget is not None and size_of(text.train) < budget
        taken.append(part)
        rows.append({"name": text.name, "budget_bytes": budget, **count(part), "short": short, "sha256": text.sha256})
    return interleave(taken), rows


def build(config, texts, tok=None, shrink=False):
    """({file name: bytes}, meta) of a corpus from the `texts` of a Source.

    tok: a Tokenizer, or None to train one; shrink: as in train_tokenizer.
    """
    data = config.data
    with Cores() as cores:
        print("reading and cleaning", flush=True)
        texts = [clean_and_split(name, read(), data, cores) for name, read in texts.items()]
        val = validation(texts)
        train, rows = training(texts, data.budget_mb)
        tok = tok or train_tokenizer(train, config.tokenizer.vocab_size, shrink, cores)
        print("tokenising", flush=True)
        files = {
            "tokenizer.model": tok.model_bytes,
            "train.bin": encode(tok, train, data, cores, data.copies),
            "val.bin": encode(tok, val, data, cores),
        }
    sums = {key: sum(row[key] for row in rows) for key in ("bytes", "words", "lines")}
    meta = {
        "format": FORMAT,
        "name": data.name,
        "sources": rows,
        "train": {**sums, **stored(files["train.bin"])},
        "val": {**count(val), **stored(files["val.bin"])},
        "vocab_size": tok.vocab_size,
        "tokenizer_sha256": tok.sha256,
        "copies": data.copies,
        "seed": data.seed,
        "boundary": data.boundary,
        "clean": data.clean,
    }
    meta["tokens_per_word"] = meta["train"]["tokens"] / (data.copies * sums["words"])
    return files, meta


def count(text_blocks):
    return {
        "bytes": size_of(text_blocks),
        "words": sum(len(block.text.decode().split()) for block in text_blocks),
        "lines": sum(sum(map(bool, block.lines())) for block in text_blocks),
    }


def stored(tokens):
    return {"tokens": len(tokens) // 2, "sha256": sha256(tokens)}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def existing_tokenizer(config):
    """The Tokenizer that tokenizer.model names, or None."""
    path = config.tokenizer.model
    if not path:
        return None
    tok = load_tokenizer(path)
    if tok.decode(tok.encode(PROBE)) != PROBE:
        print(f"NOTICE: {path} DOES NOT GIVE BACK EVERY TEXT IT IS GIVEN; bits per byte are of the text it keeps")
    if config.data.copies > 1 and not tok.cuts_at_spaces:
        raise UserError("data.copies: only words of plain BPE can be cut in other ways; set it to 1 for this tokenizer")
    return tok


def prepare(config, source, replace=False):
    """Makes data/NAME/ from a Source as the settings say, or finds that it is up to date.

    UserError if it holds what other settings made, unless `replace`.
    """
    start = time.time()
    data, folder = config.data, config.data_dir
    tok = existing_tokenizer(config)
    names = "name budget_mb validation_kb clean boundary copies seed".split()
    settings = {f"data.{name}": getattr(data, name) for name in names}
    settings |= {
        "format": FORMAT,
        "data.source": source.name,
        "tokenizer.vocab_size": None if tok else config.tokenizer.vocab_size,
        "tokenizer.model": tok and f"sha256 {tok.sha256}",
        **source.inputs,
    }
    if meta := corpus.up_to_date(folder, settings, replace):
        report(meta, time.time() - start)
        print(f"{folder}: up to date")
        return
    shrink = data.source == "auto" and source.name == "pocket"  # nobody chose this text, so its size is no mistake
    files, meta = build(config, source.texts, tok, shrink)
    pairs = source.pairs()
    for uid, found in pairs.items():
        files[f"pairs/{uid}.jsonl"] = "".join(json.dumps(pair) + "\n" for pair in found)
    meta |= {"source": source.name, "corpus": source.title, "pairs": "pairs" if pairs else None, "settings": settings}
    report(corpus.write(folder, files, meta), time.time() - start)


def report(meta, seconds):
    def row(name, counts):
        return f"{name:<16}{counts['bytes'] / 1e6:>8.2f}{counts['words']:>12,}{counts['lines']:>10,}"

    print(f"{'source':<16}{'MB':>8}{'words':>12}{'lines':>10}")
    for source in meta["sources"]:
        short = f"  SHORT: its budget is {source['budget_bytes'] / 1e6:.2f} MB" if source["short"] else ""
        print(row(source["name"], source) + short)
    copies = f" in {meta['copies']} copies" if meta["copies"] > 1 else ""
    print(f"{row('train', meta['train'])}  {meta['train']['tokens']:,} tokens{copies}")
    print(f"{row('val', meta['val'])}  {meta['val']['tokens']:,} tokens")
    print(f"corpus: {meta['corpus']}")
    print(f"vocab_size: {meta['vocab_size']}")
    print(f"tokens_per_word: {meta['tokens_per_word']:.3f}")
    print(f"seconds: {seconds:.1f}")


def find_and_prepare(config, replace=False):
    """data.source -> a prepared folder; also BLiMP, unless it is Pocket English, which never needs the network."""
    name = config.data.source
    auto = name == "auto"
    there = corpus.read_meta(config.data_dir).get("source")
    if auto and there == "pocket" and not replace:
        print("NOTICE: POCKET ENGLISH STANDS IN FOR BABYLM HERE; --replace tries to download BabyLM again.")
        name = "pocket"
    elif auto:
        name = "babylm"
    try:
        prepare(config, find(config, name), replace)
    except DownloadError as e:
        if not auto or there in BABYLM:
            raise UserError(f"{e}. Without a network: data.source=pocket, or a folder of text") from None
        name = "pocket"
        print(
            f"{e}\n\nNOTICE: BABYLM CANNOT BE DOWNLOADED. "
            f"POCKET ENGLISH, A SYNTHETIC LANGUAGE, TAKES ITS PLACE IN {config.data_dir}.\n"
        )
        prepare(config, find(config, name), replace)
    if name != "pocket":
        get_blimp(config.eval.data)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Prepares a corpus in data/NAME/, and fetches BLiMP.")
    args, config = parse_args(parser, argv, model=False)
    for step in config.data.clean:
        if step not in CLEANING:
            raise UserError(f"data.clean: no step `{step}`; known: {', '.join(CLEANING)}")
    taken = [os.path.abspath(path) for path in (DOWNLOADS, config.eval.data)]
    if not re.fullmatch(r"[\w-][\w.-]*", config.data.name) or os.path.abspath(config.data_dir) in taken:
        raise UserError(f"data.name: `{config.data.name}`: give a name (letters, digits, - _ .) that is free in data/")
    try:
        find_and_prepare(config, args.replace)
    except OSError as e:  # whatever a disk can do
        raise UserError(f"{e.filename or config.data_dir}: {e.strerror or e}") from None
    print(f"folder: {config.data_dir}")
    print("next: " + config.command("train.py"))


if __name__ == "__main__":
    cli.run(main)
