"""Text -> data/NAME/{train,val}.bin, tokenizer.model, meta.json, and BLiMP beside them.

    python prepare.py                                        # BabyLM strict-small from the Hugging Face Hub, 10 M words
    python prepare.py --preset llama-26m data.source=texts/  # a folder of *.train / *.txt
    python prepare.py --preset quick                         # Pocket English, no network

1. find:  download (resumed, retried, checked), a local folder, or the built-in grammar
2. clean: the steps of CLEANING that data.clean names
3. split: each source into blocks of a few kB of consecutive lines, shuffled by (data.seed, source); the first ones are validation
4. mix:   round robin over the sources, equally many bytes of each, so that any stretch of the stream holds all of them
5. tokenise: SentencePiece BPE trained on the training text alone; BOS before every line (or document); uint16

Any budget takes the same blocks in the same order, so 2 MB of a corpus are the beginning of its 10 MB, and all budgets share one
validation text, of which no line occurs in the training text of any budget. The same settings give the same bytes.
"""
import argparse
import difflib
import functools
import glob
import hashlib
import heapq
import html
import itertools
import json
import os
import random
import re
import shutil
import stat
import tempfile
import time
import unicodedata
import zipfile
import zlib

import numpy as np
from tqdm import tqdm

import tokenizer
from lab import pocket_english
from lab.commands import run
from lab.download import DownloadError, download, read_json
from lab.files import UserError, atomic_write, file_sha256, sealed
from lab.settings import parse_args

FORMAT = 1                      # of meta.json
# Mirrors: the environment variables SLLAMA_LAB_BABYLM_URL (a folder of the six files) and SLLAMA_LAB_BLIMP_URL (the archive).
BABYLM_URL = "https://huggingface.co/datasets/BabyLM-community/BabyLM-2026-Strict-Small/resolve/c92ab16b4f08858304b0815706065b3354d8fc0a"
BABYLM = ["bnc_spoken", "childes", "gutenberg", "open_subtitles", "simple_wiki", "switchboard"]
BLIMP_URL = "https://raw.githubusercontent.com/alexwarstadt/blimp/3e56b06fcabca9b30822fc66435fca6b1aa40bb1/BLiMP.zip"
BLIMP_SHA256 = "172a1a714d72e72a89e8384dd531483f3d0f8a9aee3d33dccaf7992d8cecbb73"
BLIMP_MOST = 200_000_000        # bytes that the unpacked archive may have
DOWNLOADS = os.path.join("data", "downloads")
PROBE = "  Two  spaces,\ta tab, ▁ and 🙂\n"
BLOCK = 4000                    # bytes of consecutive lines that stay together: some windows of context


# ---------------------------------------------------------------------------------------------------- cleaning

def rules(*pairs):
    """(pattern, replacement) ... -> a function that applies them in order. Patterns see the whole text, ^ and $ match at lines."""
    compiled = [(re.compile(pattern, re.MULTILINE), to) for pattern, to in pairs]

    def apply(text):
        for pattern, to in compiled:
            text = pattern.sub(to, text)
        return text
    return apply


def unicode(text):
    """Characters as BLiMP has them: entities resolved, NFC, one kind of newline, space, quote and ellipsis; nothing invisible."""
    text = re.sub(r"&#?\w{1,8};", lambda m: html.unescape(m[0]), text)
    text = unicodedata.normalize("NFC", text)
    for characters, to in (("\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", "\n"), ("\xa0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))), " "),
                           ("\u2018\u2019\u201b\u2032\xb4", "'"), ("\u201c\u201d\u201e\u201f\u2033", '"'), ("\u2026", "...")):
        for c in characters:
            text = text.replace(c, to)
    return re.sub("[\0-\x08\x0e-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufffd]", "", text)


def unwrap(text):
    """Joins the lines of each hard-wrapped paragraph, where most lines belong to one: as in Project Gutenberg's files, not in dialogue or verse."""
    paragraphs = [p.split("\n") for p in re.split(r"\n(?:[^\S\n]*\n)+", text.strip("\n"))]
    wrapped = [len(p) > 1 and all(50 <= len(line) <= 90 for line in p[:-1]) for p in paragraphs]
    if 2 * sum(len(p) for p, yes in zip(paragraphs, wrapped) if yes) < sum(map(len, paragraphs)):
        return text
    return "\n\n".join((" " if yes else "\n").join(p) for p, yes in zip(paragraphs, wrapped)) + "\n"


CLEANING = {
    "unicode": unicode,
    "speaker_tags": rules(
        (r"^%[a-z]{2,4}:.*\n", ""),                                                                       # "%mor: ..." of CHILDES, what linguists add
        (r"^[^\S\n]*(?:\*[A-Z][A-Z0-9]{1,6}:|[A-Z]:(?=[^\S\n]))[^\S\n]*", ""),                           # "*MOT:\t", and "A:\t" of Switchboard
        (r"[^\S\n]?\[(?:/+|[?!<>*]+|(?:[:=%+^]|=!) [^\[\]\n]*)\]", ""),                                    # its codes: [//] [: want to] [=! laughs]
    ),
    "markup": rules(
        (r"</?[A-Za-z][^<>\n]{0,200}>|\{\\[^{}\n]{0,200}\}|[\u2669-\u266c]", ""),                          # <i>, <laughter>, {\pos(1,2)}, notes
        (r"^[^\S\n]*=.*=[^\S\n]*\n", ""),                                                                 # = = = heading = = =
        (r"^[^\S\n]*\[[^\[\]\n]*\][^\S\n]*\n|^[^\S\n]*(?:\{?\||\}).*\n", ""),                              # [door opens]; rows of wiki tables
        (r"(?i)^[^\w\n]*(?:subtitles?\b(?! for)|subtitled\b|(?:sync|synced|corrected|translated|transcribed|captioned|ripped|encoded)\b.{0,30}\bby\b).{0,80}\n", ""),
        (r"(?i)^.{0,60}\b(?:www\.|https?://|opensubtitles|addic7ed).{0,60}\n", ""),                        # credits
        (r"^[^\S\n]*(?:[-\u2010-\u2015]+(?:[^\S\n]+|(?=[A-Z\"'(]))|#+[^\S\n]+)", ""),                      # "- Yes." of subtitles, "# sung
        (r"(?<=\S)[^\S\n]+#+$", ""),                                                                       # words #"
        (r"(?<!\w)_([^_\n]+)_(?!\w)", r"\1"),                                                             # _emphasis_ of Gutenberg
        (r"^[^\S\n]*(?:[^\w\s]|_)(?:[^\w\n]|_)*\n", ""),                                                  # no letter, no digit
    ),
    "unwrap": unwrap,
    "spaces": rules(
        (r"[^\S\n]{2,}|[^\S\n ]", " "),
        (r"^ | $", ""),
        (r" +([,.!?;:]+)(?=[\s\"']|$)", r"\1"),                                                           # "rocks !"
        (r" (?<=[A-Za-z] )n't\b", "n't"),                                                                 # "do n't", "it 's"
        (r"\b((?i:it|he|she|that|there|what|who|where|how|let|I|you|we|they)|[A-Z][a-z]+) ('(?:s|re|ve|ll|d|m))\b(?!')", r"\1\2"),
    ),
}


# ---------------------------------------------------------------------------------------------------- BLiMP

def unpack(archive, folder):
    """The data/*.jsonl of a zip archive -> a new folder, all or none. Only plain names are written, so nothing lands outside of it."""
    parent = os.path.dirname(os.path.abspath(folder))
    os.makedirs(parent, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=parent, prefix="blimp.", suffix=".tmp")
    try:
        with zipfile.ZipFile(archive) as z:
            members = [(m, match[1]) for m in z.infolist() if (match := re.fullmatch(r"data/(\w+\.jsonl)", m.filename))]
            if not members or any(stat.S_ISLNK(m.external_attr >> 16) for m, _ in members) or sum(m.file_size for m, _ in members) > BLIMP_MOST:
                raise UserError(f"{archive}: not the archive of BLiMP; remove it and run again")
            for m, name in members:
                atomic_write(os.path.join(temporary, name), z.read(m))
        os.chmod(temporary, 0o755)
        if os.path.isdir(folder):
            os.rmdir(folder)
        os.replace(temporary, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
        raise UserError(f"{archive}: a broken archive ({e}); remove it and run again") from None
    except OSError as e:
        raise UserError(f"{folder}: cannot be made ({e.strerror}); if something else is there, set eval.data to another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def get_blimp(folder):
    """BLiMP into `folder` if no *.jsonl is there. Training works without it, so failure is a notice."""
    if glob.glob(os.path.join(glob.escape(folder), "*.jsonl")):
        return
    archive = os.path.join(DOWNLOADS, "BLiMP.zip")
    try:
        download(os.environ.get("SLLAMA_LAB_BLIMP_URL", BLIMP_URL), archive, BLIMP_SHA256)
        unpack(archive, folder)
    except UserError as e:
        print(f"NOTICE: THERE IS NO BLIMP IN {folder}, AND EVAL_BLIMP.PY NEEDS IT.\n  {e}\n"
              f"  Run prepare.py again, or put the archive's data/*.jsonl into {folder} yourself: {BLIMP_URL}")


# ---------------------------------------------------------------------------------------------------- reading and mixing

def sha256(data):
    return hashlib.sha256(data).hexdigest()


def text_files(folder):
    """{stem: path} of the *.train and *.txt in a folder; `simple_wiki` for simple_wiki.train, .txt and .train.txt."""
    if not os.path.isdir(folder):
        raise UserError(f"data.source: no folder `{folder}`; give auto, babylm, pocket or a folder of *.train or *.txt files")
    found = {}
    for name in sorted(os.listdir(folder)):
        stem, path = re.sub(r"(\.train)?(\.txt)?$", "", name), os.path.join(folder, name)
        if stem == name or name.startswith(".") or not os.path.isfile(path):
            continue
        if stem in found:
            raise UserError(f"{folder}: {os.path.basename(found[stem])} and {name} are both called `{stem}`; rename one")
        found[stem] = path
    if not found:
        raise UserError(f"{folder}: no *.train or *.txt file in this folder")
    return found


def choose(wanted, known):
    """data.sources -> names in the order to use them; null = all."""
    for name in wanted or []:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UserError(f"data.sources: `{name}` is not there; " + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"))
        if wanted.count(name) > 1:
            raise UserError(f"data.sources: `{name}` is given twice")
    if wanted == []:
        raise UserError("data.sources: empty; name some or give null for all")
    return list(wanted or known)


def read_text(path):
    """A file's text with "\n" as newline and at its end, and its sha256. UserError for what is empty, binary or not UTF-8."""
    try:
        with open(path, "rb") as f:
            raw = f.read()
        text = raw.decode()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text at byte {e.start}; convert it (iconv -f LATIN1 -t UTF-8), or remove it from the folder or data.sources") from None
    if len(raw.translate(None, bytes(c for c in range(32) if c not in b"\t\n\v\f\r\x1b") + b"\x7f")) < 0.99 * len(raw):
        raise UserError(f"{path}: a binary file (over 1 % control characters); remove it from the folder or data.sources")
    if not text.strip("\ufeff \t\r\n"):
        raise UserError(f"{path}: empty; remove it from the folder or data.sources")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").rstrip("\n") + "\n", sha256(raw)


def clean(text, steps):
    """Text after the steps, as a list of lines; lines over tokenizer.LONGEST_LINE are cut at spaces; "" is a boundary of documents."""
    for step in steps:
        text = CLEANING[step](text)
    longest = tokenizer.LONGEST_LINE
    lines = []
    for line in text.split("\n"):
        if not line or line.isspace():
            lines.append("")
        elif len(line) <= longest:
            lines.append(line)
        else:
            lines += re.findall(rf"\S.{{0,{longest - 2}}}(?!\S)|\S{{1,{longest}}}", line)
    return lines


def size(line):
    """Bytes of a line with its newline; a boundary has none."""
    return (len(line) if line.isascii() else len(line.encode())) + 1 if line else 0


def blocks(lines):
    """Cuts lines into blocks that stay together: at the first boundary after BLOCK bytes, or without one at twice that.

    Short texts get smaller blocks, so that a twentieth of any text can be put aside.
    """
    goal, out, block, n = min(BLOCK, sum(map(size, lines)) // 200), [], [], 0
    for line in lines:
        if line or block and block[-1]:
            block.append(line)
            n += size(line)
        if n and (n >= 2 * goal or n >= goal and not line):
            out.append(block)
            block, n = [], 0
    return out + [block] * (n > 0)


def split(text_blocks, kb, seed, name):
    """(validation, training) blocks of one source, both in the order they will be used in. Depends on nothing else."""
    text_blocks = list(text_blocks)
    random.Random(f"{seed} {name}").shuffle(text_blocks)
    sizes = [sum(map(size, block)) for block in text_blocks]
    left, held, rest = min(1000 * kb, sum(sizes) / 20), [], []
    for block, n in zip(text_blocks, sizes):
        if n <= left:
            left -= n
            held.append(block)
        else:
            rest.append(block)
    return held, rest


def unseen(text_blocks, seen):
    """Blocks without the lines that are in the set `seen`: validation text must be new, and "Yeah." is not."""
    return [kept for block in text_blocks if any(kept := [line for line in block if line not in seen or not line])]


def take(text_blocks, budget):
    """Whole lines from the start of the blocks, up to `budget` bytes (null: all) -> (blocks, whether they are fewer bytes than that for want of text)."""
    out, used = [], 0
    for block in text_blocks:
        kept = []
        for line in block:
            if budget is not None and used + size(line) > budget:
                return out + [kept] * any(kept), False
            used += size(line)
            kept.append(line)
        out.append(kept)
    return out, budget is not None and used < budget


def interleave(parts):
    """Lists of blocks -> one list: the next block is always of the list that has given the smallest share of its bytes."""
    totals = [sum(size(line) for block in part for line in block) for part in parts]
    out, heap, nexts = [], [(0.0, i, 0) for i in range(len(parts))], [iter(part) for part in parts]
    while heap:
        _, i, given = heap[0]
        if block := next(nexts[i], None):
            out.append(block)
            given += sum(map(size, block))
            heapq.heapreplace(heap, (given / totals[i], i, given))
        else:
            heapq.heappop(heap)
    return out


SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[\"'A-Z])")                    # rough: it also cuts after "Mr."


def documents(text_blocks, boundary):
    """Blocks -> the texts that get a BOS each: lines; for `sentence` the parts of each line that end like a sentence; for
    `document` the lines between boundaries, joined by "\n"."""
    for block in text_blocks:
        if boundary == "line":
            yield from filter(None, block)
        elif boundary == "sentence":
            yield from (sentence for line in filter(None, block) for sentence in SENTENCE_END.split(line))
        else:
            yield from ("\n".join(group) for full, group in itertools.groupby(block, bool) if full)


# ---------------------------------------------------------------------------------------------------- tokens and files

def encode(tok, texts, label):
    """uint16 array: BOS and the tokens of each text. In batches of about a megabyte, because a list of ids is large."""
    out, batch, n = [], [], 0
    for text in tqdm(itertools.chain(texts, [None]), label, unit=" lines", leave=False, disable=None):
        if text is None or n > 1_000_000:
            out.append(np.fromiter(itertools.chain.from_iterable([tok.bos_id, *ids] for ids in tok.encode_batch(batch)), "<u2"))
            batch, n = [], 0
        batch.append(text)
        n += len(text or "")
    return np.concatenate(out)


def count(text_blocks):
    lines = [line for block in text_blocks for line in block if line]
    return {"bytes": sum(map(size, lines)), "words": sum(len(line.split()) for line in lines), "lines": len(lines)}


def build(config, tok, sources, fallback=False):
    """({file name: bytes}, meta) of a corpus. sources: {name: function that gives (text, sha256)}; fallback: take a smaller vocabulary if need be."""
    d, held, pools, hashes, owner = config.data, {}, {}, {}, {}
    print("reading and cleaning", flush=True)
    for name in sources:
        text, hashes[name] = sources[name]()
        if (twin := owner.setdefault(hashes[name], name)) != name:
            raise UserError(f"data.source: `{twin}` and `{name}` are the same text; remove one or leave it out of data.sources")
        lines = clean(text, d.clean)
        if not any(lines):
            raise UserError(f"data.source: nothing of `{name}` is left after cleaning; leave it out of data.sources or change data.clean")
        held[name], pools[name] = split(blocks(lines), d.validation_kb, d.seed, name)
    seen = {line for pool in pools.values() for block in pool for line in block}
    val = interleave([part for part in (unseen(held[name], seen) for name in sources) if part])
    if not val:
        raise UserError("data.source: too little text, a twentieth of it (or data.validation_kb) holds no line that the rest does not have; nothing is left to validate on")
    budget, rows, parts = None if d.budget_mb is None else int(1e6 * d.budget_mb / len(sources)), [], []
    for name in sources:
        part, short = take(pools[name], budget)
        if not count(part)["lines"]:
            raise UserError(f"data.budget_mb: `{name}` may give {budget} bytes, and its first line is longer; set more")
        parts.append(part)
        rows.append({"name": name, "budget_bytes": budget, **count(part), "short": short, "sha256": hashes[name]})
    train = interleave(parts)
    if tok is None:
        tok = train_tokenizer(train, config.tokenizer.vocab_size, fallback)
    files, meta = {"tokenizer.model": tok.model_bytes}, {"format": FORMAT, "name": d.name, "sources": rows}
    print("tokenising", flush=True)
    for part, text_blocks in (("train", train), ("val", val)):
        tokens = encode(tok, documents(text_blocks, d.boundary), part)
        files[part + ".bin"] = tokens.tobytes()
        meta[part] = {**count(text_blocks), "tokens": len(tokens), "sha256": sha256(files[part + ".bin"])}
    return files, meta | {"vocab_size": tok.vocab_size, "tokenizer_sha256": tok.sha256, "tokens_per_word": meta["train"]["tokens"] / meta["train"]["words"],
                          "seed": d.seed, "boundary": d.boundary, "clean": d.clean}


def train_tokenizer(text_blocks, vocab_size, fallback):
    print("training the tokenizer", flush=True)

    def lines():
        return (line for block in text_blocks for line in block if line)
    try:
        return tokenizer.train(lines(), vocab_size)
    except tokenizer.VocabularyError as e:
        if not fallback:
            raise
        print(f"NOTICE: this text supports no {vocab_size} pieces; the vocabulary has {e.possible}")
        return tokenizer.train(lines(), e.possible)


# ---------------------------------------------------------------------------------------------------- corpora
# Each gives source and corpus as meta.json names them, what the text depends on, and {name: function that gives (text, sha256)}.

def folder_corpus(config):
    paths = text_files(config.data.source)
    names, title = choose(config.data.sources, list(paths)), os.path.basename(os.path.abspath(config.data.source))
    texts = {name: functools.partial(read_text, paths[name]) for name in names}
    return title, "folder " + title, [(name, read_text(paths[name])[1]) for name in names], texts


def babylm_corpus(config):
    url = os.environ.get("SLLAMA_LAB_BABYLM_URL", BABYLM_URL)
    names = choose(config.data.sources, BABYLM)

    def text(name):
        path = os.path.join(DOWNLOADS, "babylm", name + ".train.txt")
        download(f"{url}/{name}.train.txt", path)
        return read_text(path)
    return "babylm", "BabyLM 2026 strict-small", [url, names], {name: functools.partial(text, name) for name in names}


def pocket_corpus(config):
    d = config.data
    if d.sources:
        print("data.sources: Pocket English has only one; the setting is ignored")

    def text():
        made = "\n".join(pocket_english.text(d.pocket_words, d.seed)) + "\n"
        return made, sha256(made.encode())
    return "pocket", f"Pocket English (synthetic, seed {d.seed}, {d.pocket_words} words)", [d.pocket_words, file_sha256(pocket_english.__file__)], {"pocket": text}


def prepare(config, corpus, fallback=False):
    """Makes data/NAME/ what the settings say, or finds that it is already."""
    start, d, folder = time.time(), config.data, config.data_dir
    source, title, inputs, texts = corpus
    tok = tokenizer.load(config.tokenizer.model) if config.tokenizer.model else None
    if tok and tok.decode(tok.encode(PROBE)) != PROBE:
        print(f"NOTICE: {config.tokenizer.model} DOES NOT GIVE BACK EVERY TEXT IT IS GIVEN; bits per byte are of the text it keeps")
    settings = [FORMAT, d.name, d.budget_mb, d.validation_kb, d.clean, d.boundary, d.seed, tok.sha256 if tok else config.tokenizer.vocab_size, source, inputs, fallback]
    digest = sha256(json.dumps(settings).encode())
    if meta := up_to_date(folder, digest):
        report(meta, time.time() - start)
        print(f"{folder}: up to date")
        return
    if fallback and read_json(os.path.join(folder, "meta.json")).get("source") == "babylm":
        raise UserError(f"{folder}: made from BabyLM, which cannot be downloaded now; Pocket English does not replace it: set another data.name, or data.source=pocket")
    files, meta = build(config, tok, texts, fallback)
    if source == "pocket":
        files |= {f"pairs/{uid}.jsonl": "".join(json.dumps(pair) + "\n" for pair in pairs) for uid, pairs in pocket_english.pairs(d.seed).items()}
    write(folder, files, meta | {"source": source, "corpus": title, "pairs": "pairs" if source == "pocket" else None, "settings_sha256": digest})
    report(read_json(os.path.join(folder, "meta.json")), time.time() - start)


def find_and_prepare(config):
    """data.source -> a prepared folder, and BLiMP but for Pocket English, which never asks the network."""
    source = config.data.source
    if source == "pocket":
        return prepare(config, pocket_corpus(config))
    try:
        prepare(config, babylm_corpus(config) if source in ("auto", "babylm") else folder_corpus(config))
    except DownloadError as e:
        if source != "auto":
            raise UserError(f"{e}. Without a network: data.source=pocket, or a folder of text") from None
        print(f"{e}\n\nNOTICE: BABYLM CANNOT BE DOWNLOADED. POCKET ENGLISH, A SYNTHETIC LANGUAGE, TAKES ITS PLACE IN {config.data_dir}.\n")
        return prepare(config, pocket_corpus(config), fallback=True)
    get_blimp(config.eval.data)


def up_to_date(folder, settings_sha256):
    """meta.json if the folder holds, bit for bit, what these settings gave; else None."""
    meta = read_json(os.path.join(folder, "meta.json"))
    try:
        if meta["settings_sha256"] != settings_sha256 or sealed(meta) != meta:
            return None
        files = {"train.bin": meta["train"]["sha256"], "val.bin": meta["val"]["sha256"], "tokenizer.model": meta["tokenizer_sha256"]}
        good = all(file_sha256(os.path.join(folder, name)) == digest for name, digest in files.items())
        return meta if good and meta["pairs_sha256"] == pairs_sha256(folder) else None
    except (OSError, KeyError, TypeError):
        return None


def pairs_sha256(folder):
    """One hash of the files of minimal pairs, or None without any."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "pairs", "*.jsonl")))
    return sha256("".join(os.path.basename(path) + file_sha256(path) for path in paths).encode()) if paths else None


def write(folder, files, meta):
    """meta.json goes first and comes last: a folder that has one is whole, whenever the run is killed."""
    path = os.path.join(folder, "meta.json")
    if os.path.exists(path):
        os.unlink(path)
    for old in ("pairs/*.jsonl", "*.tmp", "pairs/*.tmp"):
        for name in glob.glob(os.path.join(glob.escape(folder), old)):
            os.unlink(name)
    for name, content in files.items():
        atomic_write(os.path.join(folder, name), content)
    atomic_write(path, json.dumps(sealed(meta | {"pairs_sha256": pairs_sha256(folder)}), indent=1) + "\n")


def report(meta, seconds):
    print(f"{'source':<16}{'MB':>8}{'words':>12}{'lines':>10}")
    for s in meta["sources"]:
        note = f"  SHORT: its budget is {s['budget_bytes'] / 1e6:.2f} MB" if s["short"] else ""
        print(f"{s['name']:<16}{s['bytes'] / 1e6:>8.2f}{s['words']:>12,}{s['lines']:>10,}{note}")
    for part in ("train", "val"):
        s = meta[part]
        print(f"{part:<16}{s['bytes'] / 1e6:>8.2f}{s['words']:>12,}{s['lines']:>10,}  {s['tokens']:,} tokens")
    print(f"corpus: {meta['corpus']}\nvocab_size: {meta['vocab_size']}\ntokens_per_word: {meta['tokens_per_word']:.3f}\nseconds: {seconds:.1f}")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Cleans, mixes and tokenises a corpus into data/NAME/, and fetches BLiMP.")
    _, config = parse_args(parser, argv)
    d = config.data
    for step in set(d.clean) - set(CLEANING):
        raise UserError(f"data.clean: no step `{step}`; known: {', '.join(CLEANING)}")
    if not re.fullmatch(r"[\w-][\w.-]*", d.name) or os.path.abspath(config.data_dir) in map(os.path.abspath, (DOWNLOADS, config.eval.data)):
        raise UserError(f"data.name: `{d.name}` must be the name of a new folder in data/: letters, digits, - _ . and not that of the downloads or of eval.data")
    try:
        find_and_prepare(config)
    except OSError as e:                                                # whatever a disk can do
        raise UserError(f"{e.filename or config.data_dir}: {e.strerror or e}") from None


if __name__ == "__main__":
    run(main)
