"""A prepared corpus on the disk, data/NAME/: train.bin, val.bin, tokenizer.model, pairs/*.jsonl, and meta.json.

meta.json says what the others must be. It is removed first and written last, so a folder that has one is whole.
"""

import glob
import hashlib
import json
import os

from lab.files import UserError, atomic_write, file_sha256, sealed


def read_meta(folder):
    """What meta.json holds; {} if there is none, or one that is no dictionary. UserError if it cannot be read."""
    path = os.path.join(folder, "meta.json")
    try:
        with open(path, encoding="utf-8") as f:
            meta = json.load(f)
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    return meta if isinstance(meta, dict) else {}


def up_to_date(folder, settings, replace=False):
    """meta.json if the folder holds, bit for bit, what these settings gave; None if it is to be made.

    UserError if it holds what other settings gave, unless that may be replaced.
    """
    meta = read_meta(folder)
    if not meta:
        return None
    there = meta.get("settings")
    if there != settings:
        if replace:
            return None
        raise UserError(
            f"{folder}: holds a corpus made with other settings, which is kept; "
            "add --replace, or choose another name with data.name=NAME" + differences(there, settings)
        )
    try:
        intact = sealed(meta) == meta and meta["pairs_sha256"] == pairs_sha256(folder)
        for name in ("train", "val"):
            intact = intact and file_sha256(os.path.join(folder, f"{name}.bin")) == meta[name]["sha256"]
        intact = intact and file_sha256(os.path.join(folder, "tokenizer.model")) == meta["tokenizer_sha256"]
    except FileNotFoundError:
        intact = False
    except OSError as e:
        raise UserError(f"{e.filename}: cannot be read ({e.strerror})") from None
    if not intact:
        print(f"{folder}: a file is missing or damaged; all of it is made again")
        return None
    return meta


def differences(there, settings):
    """A line for each setting that differs, with both values."""
    if not isinstance(there, dict):
        return "\n  - an earlier version made it, which did not note its settings"
    names = [name for name in settings if name in there]
    if there.get("data.source") == settings["data.source"]:  # else the other inputs have nothing in common
        names = list(there | settings)
    lines = ""
    for name in names:
        old, new = (json.dumps(tree.get(name)).strip('"') for tree in (there, settings))
        if old != new:
            lines += f"\n  - {name}: {old} there, {new} now"
    return lines


def pairs_sha256(folder):
    """One hash of the files of minimal pairs, or None without any."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "pairs", "*.jsonl")))
    if not paths:
        return None
    listing = "".join(os.path.basename(path) + file_sha256(path) for path in paths)
    return hashlib.sha256(listing.encode()).hexdigest()


def write(folder, files, meta):
    """{file name: bytes or text} and meta.json, in place of what the folder held. Returns meta as it was written."""
    path = os.path.join(folder, "meta.json")
    if os.path.exists(path):
        os.unlink(path)
    for pattern in ("pairs/*.jsonl", "*.tmp", "pairs/*.tmp"):  # .tmp: left by a kill in the middle of a write
        for old in glob.glob(os.path.join(glob.escape(folder), pattern)):
            os.unlink(old)
    for name, content in files.items():
        atomic_write(os.path.join(folder, name), content)
    meta = sealed({**meta, "pairs_sha256": pairs_sha256(folder)})
    atomic_write(path, json.dumps(meta, indent=1) + "\n")
    return meta
