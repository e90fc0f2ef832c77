"""Where text comes from: BabyLM on the Hugging Face Hub, a folder of text files, or Pocket English.

A file is read in parts of about PART bytes, for lab/text/cores.py. A mirror is the address of a folder of BabyLM's six
files, in the environment variable SLLAMA_LAB_BABYLM_URL or SLLAMA_LAB_BABYLM_100M_URL.
"""

import difflib
import functools
import hashlib
import os
import re
from typing import NamedTuple

from lab.files import UserError, file_sha256
from lab.text import pocket_english
from lab.text.download import download

PART = 1_000_000  # bytes of text that are cleaned or tokenised at a time
DOWNLOADS = os.path.join("data", "downloads")
HUB = "https://huggingface.co/datasets/BabyLM-community"
BABYLM = {  # data.source: title, environment variable of a mirror, address
    "babylm": (
        "BabyLM 2026 strict-small",
        "SLLAMA_LAB_BABYLM_URL",
        f"{HUB}/BabyLM-2026-Strict-Small/resolve/c92ab16b4f08858304b0815706065b3354d8fc0a",
    ),
    "babylm-100m": (  # its revision is not pinned; checksums.json holds its files to what came first
        "BabyLM 2026 strict",
        "SLLAMA_LAB_BABYLM_100M_URL",
        f"{HUB}/BabyLM-2026-Strict/resolve/main",
    ),
}
BABYLM_FILES = ["bnc_spoken", "childes", "gutenberg", "open_subtitles", "simple_wiki", "switchboard"]
BYTE_ORDER_MARK = "\ufeff".encode()
CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b")) + b"\x7f"
EMPTY_LINE = re.compile(rb"\n\r?\n")
NEWLINE = re.compile(rb"\n")


class Source(NamedTuple):
    """Where a corpus comes from. texts: {name: function that gives its parts and sha256, as read_text does}."""

    name: str
    title: str
    inputs: dict  # what the texts depend on, by the name that a user knows it by
    texts: dict


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def folder_source(config):
    folder = config.data.source
    paths = text_files(folder)
    names = choose(config.data.sources, list(paths))
    title = os.path.basename(os.path.abspath(folder))
    texts = {name: functools.partial(read_text, paths[name]) for name in names}
    inputs = {f"the text of `{name}`": f"sha256 {read_hash(paths[name])}" for name in names}
    return Source(title, f"folder {title}", inputs, texts)


def babylm_source(config, name):
    """name: one of BABYLM."""
    title, variable, address = BABYLM[name]
    url = os.environ.get(variable, address)
    files = choose(config.data.sources, BABYLM_FILES)

    def text(file):
        path = os.path.join(DOWNLOADS, name, f"{file}.train.txt")
        download(f"{url}/{file}.train.txt", path)
        return read_text(path)

    return Source(
        name, title, {"address": url, "data.sources": files}, {file: functools.partial(text, file) for file in files}
    )


def pocket_source(config):
    words, seed = config.data.pocket_words, config.data.seed
    if config.data.sources:
        print("data.sources: Pocket English has only one; the setting is ignored")

    def text():
        made = "".join(line + "\n" for line in pocket_english.text(words, seed)).encode()
        return [made], sha256(made)

    title = f"Pocket English (synthetic, seed {seed}, {words} words)"
    grammar = f"sha256 {file_sha256(pocket_english.__file__)}"
    return Source("pocket", title, {"data.pocket_words": words, "pocket_english.py": grammar}, {"pocket": text})


def text_files(folder):
    """{stem: path} of the *.train and *.txt in a folder; `simple_wiki` for simple_wiki.train, .txt and .train.txt."""
    if not os.path.isdir(folder):
        raise UserError(
            f"data.source: no folder `{folder}`; "
            "give auto, babylm, babylm-100m, pocket or a folder of *.train or *.txt files"
        )
    found = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        stem = re.sub(r"(\.train)?(\.txt)?$", "", name)
        if stem == name or name.startswith(".") or not os.path.isfile(path):
            continue
        if stem in found:
            other = os.path.basename(found[stem])
            raise UserError(f"{folder}: {other} and {name} are both called `{stem}`; rename one")
        found[stem] = path
    if not found:
        raise UserError(f"{folder}: no *.train or *.txt file in this folder")
    return found


def choose(wanted, known):
    """data.sources -> names in the order to use them; null = all."""
    if wanted is None:
        return known
    if not wanted:
        raise UserError("data.sources: empty; name some or give null for all")
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
            raise UserError(f"data.sources: `{name}` is not there; {hint}")
        if wanted.count(name) > 1:
            raise UserError(f"data.sources: `{name}` is given twice")
    return wanted


def read_hash(path):
    try:
        return file_sha256(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None


def read_text(path):
    """A file's text as an iterator over UTF-8 parts of about PART bytes, with "\n" as newline, and the file's sha256.

    UserError for what is empty, binary or not UTF-8.
    """
    try:
        with open(path, "rb") as f:
            raw = f.read()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    out = "remove it from the folder or data.sources"
    if not raw.strip(BYTE_ORDER_MARK + b" \t\r\n"):
        raise UserError(f"{path}: empty; {out}")
    for start, end in cuts(raw):
        try:
            raw[start:end].decode()
        except UnicodeDecodeError as e:
            raise UserError(
                f"{path}: not UTF-8 text at byte {start + e.start}; convert it (iconv -f LATIN1 -t UTF-8), or {out}"
            ) from None
    if len(raw.translate(None, CONTROL)) < 0.99 * len(raw):
        raise UserError(f"{path}: a binary file (over 1 % control characters); {out}")
    return parts(raw), sha256(raw)


def parts(raw):
    for start, end in cuts(raw):
        part = raw[start:end].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if start == 0:
            part = part.removeprefix(BYTE_ORDER_MARK)
        yield part if part.endswith(b"\n") else part + b"\n"


def cuts(raw):
    """(start, end) of parts of about PART bytes, each ending after an empty line, or after any line if none is near."""
    start = 0
    while start < len(raw):
        found = EMPTY_LINE.search(raw, start + PART, start + 2 * PART) or NEWLINE.search(raw, start + 2 * PART)
        end = found.end() if found else len(raw)
        yield start, end
        start = end
