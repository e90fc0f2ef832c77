"""Where text comes from: BabyLM on the Hugging Face Hub, a folder of text files, or Pocket English. And BLiMP.

Environment variables name mirrors: SLLAMA_LAB_BABYLM_URL and SLLAMA_LAB_BABYLM_100M_URL are folders with the six files
of BabyLM, and SLLAMA_LAB_BLIMP_URL is the archive of BLiMP.
"""

import codecs
from collections.abc import Callable
import functools
import glob
import itertools
import os
import shutil
import sys
import tempfile
from typing import NamedTuple

from lab.corpus import BABYLM_FILES, holds_pairs
from lab.files import UserError, file_sha256
from lab.settings import nearest
from lab.text import pocket_english

DOWNLOADS = os.path.join("data", "downloads")
TIMEOUT = 9  # seconds without an answer
TRIES = 4  # per file
HUB = "https://huggingface.co/datasets/BabyLM-community/BabyLM-2026-"
BABYLM = {  # data.source: title, address (the second one's revision is not pinned)
    "babylm": ("BabyLM 2026 strict-small", f"{HUB}Strict-Small/resolve/c92ab16b4f08858304b0815706065b3354d8fc0a"),
    "babylm-100m": ("BabyLM 2026 strict", f"{HUB}Strict/resolve/main"),
}
BLIMP_URL = "https://raw.githubusercontent.com/alexwarstadt/blimp/3e56b06fcabca9b30822fc66435fca6b1aa40bb1/BLiMP.zip"
BLIMP_SHA256 = "172a1a714d72e72a89e8384dd531483f3d0f8a9aee3d33dccaf7992d8cecbb73"
CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b")) + b"\x7f"


class Source(NamedTuple):
    """Where a corpus comes from."""

    name: str  # in meta.json
    title: str
    inputs: dict  # what the texts depend on: {name that a user knows: value}
    texts: dict  # {name: function that returns its bytes, which are UTF-8}
    pairs: Callable = dict  # returns {UID: minimal pairs that belong to the texts}


def find(config, name) -> Source:
    """The Source that data.source=`name` means. UserError if it has no text, or not what data.sources asks for."""
    if name == "pocket":
        return pocket_source(config.data)
    if name in BABYLM:
        return babylm_source(config.data, name)
    return folder_source(config.data)


def folder_source(data):
    title = os.path.basename(os.path.abspath(data.source))
    if title in (*BABYLM, "pocket"):
        raise UserError(f"data.source: rename the folder; its text would be taken for our own source `{title}`")
    paths = text_files(data.source)
    names = choose(data.sources, list(paths))
    inputs = {f"the text of `{name}`": f"sha256 {file_sha256(paths[name])}" for name in names}
    for name, other in itertools.combinations(inputs, 2):
        if inputs[name] == inputs[other]:
            raise UserError(f"data.source: {name} and {other} are the same; remove one")
    texts = {name: functools.partial(read_text, paths[name]) for name in names}
    return Source(title, f"folder {title}", inputs, texts)


def babylm_source(data, name):
    title, address = BABYLM[name]
    url = os.environ.get(f"SLLAMA_LAB_{name.upper().replace('-', '_')}_URL", address)
    files = choose(data.sources, BABYLM_FILES)

    def text(file):
        path = os.path.join(DOWNLOADS, name, f"{file}.train.txt")
        download(f"{url}/{file}.train.txt", path)
        return read_text(path)

    inputs = {"address": url, "data.sources": files}
    return Source(name, title, inputs, {file: functools.partial(text, file) for file in files})


def pocket_source(data):
    if data.sources:
        print("data.sources: ignored, because Pocket English has only one source")

    def text():
        return "".join(line + "\n" for line in pocket_english.text(data.pocket_words, data.seed)).encode()

    title = f"Pocket English (synthetic, seed {data.seed}, {data.pocket_words} words)"
    grammar = f"sha256 {file_sha256(pocket_english.__file__)}"
    inputs = {"data.pocket_words": data.pocket_words, "pocket_english.py": grammar}
    return Source("pocket", title, inputs, {"pocket": text}, functools.partial(pocket_english.pairs, data.seed))


# ---------------------------------------------------------------------------------------------------- files of text


def text_files(folder):
    """{stem: path} of the *.train and *.txt in a folder; `simple_wiki` for simple_wiki.train, .txt and .train.txt."""
    anything, found = os.path.join(glob.escape(folder), "*"), {}
    for path in sorted(glob.glob(anything + ".train") + glob.glob(anything + ".txt")):
        stem = os.path.basename(path).removesuffix(".txt").removesuffix(".train")
        if stem in found:
            raise UserError(f"{found[stem]} and {path} are both called `{stem}`; rename one")
        found[stem] = path
    if not found:
        known = ", ".join(["auto", "pocket", *BABYLM])
        raise UserError(f"data.source: `{folder}` is not a folder of *.train or *.txt files, nor one of {known}")
    return found


def choose(wanted, known):
    """data.sources -> names in the order to use them; null = all."""
    if wanted is None:
        return known
    for name in wanted:
        if name not in known:
            raise UserError(f"data.sources: `{name}` is not there; {nearest(name, known)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise UserError("data.sources: name each source once, and at least one, or give null for all")
    return wanted


def read_text(path):
    """A file's bytes. UserError if they are not text in UTF-8."""
    with open(path, "rb") as f:
        raw = f.read()
    out = "remove it from the folder or data.sources"
    if not raw.strip(codecs.BOM_UTF8 + b" \t\r\n"):
        raise UserError(f"{path}: empty; {out}")
    try:
        raw.decode()
    except UnicodeDecodeError as e:
        reason = f"not UTF-8 text at byte {e.start}; convert it (iconv -f LATIN1 -t UTF-8)"
        raise UserError(f"{path}: {reason}, or {out}") from None
    if len(raw.translate(None, CONTROL)) < 0.99 * len(raw):
        raise UserError(f"{path}: a binary file (over 1 % control characters); {out}")
    return raw


# ---------------------------------------------------------------------------------------------------- downloads


class DownloadError(UserError):
    """A file that cannot be downloaded."""


def download(url, path, sha256=None):
    """Downloads `url` to `path`, unless the file is there already, with this checksum if one is known.

    DownloadError: nobody answers, the server refuses, or after TRIES tries the file is still cut off or another one.
    `path` is then as it was.
    """
    import pooch  # here, because it takes a while and most runs download nothing
    import requests

    pooch.get_logger().setLevel("ERROR")
    folder, name = os.path.split(path)
    cache = pooch.create(folder, url, registry={name: sha256}, urls={name: url}, retry_if_failed=TRIES - 1)
    try:
        if not os.path.exists(path):
            print(f"downloading {url}")
            requests.head(url, timeout=TIMEOUT)  # where nobody answers, one try is enough
        cache.fetch(name, downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT))
    except requests.HTTPError as e:
        raise DownloadError(f"{url}: the server answers {e.response.status_code} {e.response.reason}") from None
    except requests.RequestException as e:
        raise DownloadError(f"{url}: no connection ({type(e).__name__})") from None
    except ValueError as e:  # pooch's, for a wrong checksum
        raise DownloadError(f"{url}: {e}") from None


def get_blimp(folder):
    """Downloads BLiMP to `folder` if no pairs are there. Training works without it, so failure is a notice."""
    if holds_pairs(folder):
        return
    archive = os.path.join(DOWNLOADS, "BLiMP.zip")
    parent = os.path.dirname(os.path.abspath(folder))
    try:
        download(os.environ.get("SLLAMA_LAB_BLIMP_URL", BLIMP_URL), archive, BLIMP_SHA256)
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as temporary:  # all of the files or none
            shutil.unpack_archive(archive, temporary)
            os.rename(os.path.join(temporary, "data"), folder)
    except (UserError, OSError) as e:
        print(
            f"NOTICE: THERE IS NO BLIMP IN {folder}, AND EVAL_BLIMP.PY NEEDS IT.\n  {e}\n"
            f"  Run prepare.py again, or put the archive's data/*.jsonl into {folder} yourself: {BLIMP_URL}"
        )
