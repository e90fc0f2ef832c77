"""A prepared corpus on the disk, data/NAME/: train.bin, val.bin, tokenizer.model, pairs/*.jsonl, and meta.json.

meta.json holds the settings and the checksums of the others. It is removed first and written last, so a folder that
has one is whole.
"""

import glob
import hashlib
import json
import os

from lab.files import UserError, atomic_write, file_sha256, read_json, sealed

BABYLM_FILES = ["bnc_spoken", "childes", "gutenberg", "open_subtitles", "simple_wiki", "switchboard"]
PAIR_FILES = (".jsonl", ".csv", ".tsv")  # how files of minimal pairs end


def read_meta(folder):
    """What meta.json holds, {} if there is none. UserError if it cannot be read, or is not as it was written."""
    path = os.path.join(folder, "meta.json")
    if not os.path.exists(path):
        return {}
    remedy = "repair it, or delete the folder and run prepare.py again"
    meta = read_json(path, remedy)
    if sealed(meta) != meta:
        raise UserError(f"{path}: damaged or edited; {remedy}")
    return meta


def up_to_date(folder, settings, replace=False):
    """meta.json if the folder holds, bit for bit, what these settings made; None if it has to be made.

    UserError if it holds what other settings made, unless that may be replaced.
    """
    meta = read_meta(folder)
    there = meta.get("settings") or {}
    if not meta or (there != settings and replace):
        return None
    if there != settings:
        raise UserError(
            f"{folder}: holds a corpus made with other settings, which is kept; "
            "add --replace, or choose another name with data.name=NAME" + differences(there, settings)
        )
    intact = pairs_sha256(folder) == meta["pairs_sha256"]
    made = {"train.bin": meta["train"]["sha256"], "val.bin": meta["val"]["sha256"]}
    for name, sha256 in {**made, "tokenizer.model": meta["tokenizer_sha256"]}.items():
        path = os.path.join(folder, name)
        intact = intact and os.path.exists(path) and file_sha256(path) == sha256
    if intact:
        return meta
    print(f"{folder}: a file is missing or damaged, so everything is made again")
    return None


def differences(there, settings):
    """A line for each setting that differs, with both values."""
    same_source = there.get("data.source") == settings["data.source"]  # else their inputs have nothing in common
    lines = ""
    for name in there | settings:
        old, new = (json.dumps(tree.get(name)).strip('"') for tree in (there, settings))
        if old != new and (same_source or (name in there and name in settings)):
            lines += f"\n  - {name}: {old} there, {new} now"
    return lines


def holds_pairs(folder):
    return os.path.isdir(folder) and any(name.endswith(PAIR_FILES) for name in os.listdir(folder))


def pairs_sha256(folder):
    """One hash of the files of minimal pairs, or None if there are none."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "pairs", "*.jsonl")))
    listing = "".join(os.path.basename(path) + file_sha256(path) for path in paths)
    return hashlib.sha256(listing.encode()).hexdigest() if paths else None


def write(folder, files, meta):
    """Writes {file name: bytes or text} and meta.json in place of what the folder held. Returns meta as written."""
    for pattern in ("meta.json", "pairs/*.jsonl", "*.tmp", "pairs/*.tmp"):  # .tmp: left by a kill during a write
        for old in glob.glob(os.path.join(glob.escape(folder), pattern)):
            os.unlink(old)
    for name, content in files.items():
        atomic_write(os.path.join(folder, name), content)
    meta = sealed({**meta, "pairs_sha256": pairs_sha256(folder)})
    atomic_write(os.path.join(folder, "meta.json"), json.dumps(meta, indent=1) + "\n")
    return meta
