"""A prepared corpus on the disk, data/NAME/: train.bin, val.bin, tokenizer.model, pairs/*.jsonl, and meta.json.

meta.json says what the others must be. It is removed first and written last, so a folder that has one is whole.
"""

import glob
import hashlib
import json
import os

from lab.files import atomic_write, file_sha256, read_json, sealed


def up_to_date(folder, settings_sha256):
    """meta.json if the folder holds, bit for bit, what these settings gave; else None."""
    meta = read_json(os.path.join(folder, "meta.json"))
    try:
        expected = {
            "train.bin": meta["train"]["sha256"],
            "val.bin": meta["val"]["sha256"],
            "tokenizer.model": meta["tokenizer_sha256"],
        }
        if meta["settings_sha256"] != settings_sha256 or sealed(meta) != meta:
            return None
        if meta["pairs_sha256"] != pairs_sha256(folder):
            return None
        for name, digest in expected.items():
            if file_sha256(os.path.join(folder, name)) != digest:
                return None
    except (OSError, KeyError, TypeError):
        return None
    return meta


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
