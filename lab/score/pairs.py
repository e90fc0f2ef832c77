"""Minimal pairs: folders of *.jsonl, *.csv and *.tsv files with a pair in each line.

Their keys or columns are BLiMP's, sentence_good and sentence_bad, or what --good, --bad and --group say; docs/pairs.md
has examples.
"""

from collections import Counter
import contextlib
import csv
import hashlib
import io
import json
import os
import pathlib

from lab.corpus import PAIR_FILES, holds_pairs, read_meta
from lab.files import UserError, read_text

import yaml

# {paradigm: how many of its 1000 pairs are in the BabyLM challenge's filtered BLiMP}
BLIMP = yaml.safe_load((pathlib.Path(__file__).parent / "blimp.yaml").read_text(encoding="utf-8"))

# The paper has 12 phenomena, the files 13 terms; 4 fields, the files 5 spellings.
SAME = {"s-selection": "argument_structure", "syntax/semantics": "syntax_semantics"}


def find_data(wanted, meta):
    """(folder, why): `wanted`, config.yaml's eval.data, if it holds pairs, else the folder of the corpus in `meta`."""
    own = os.path.join("data", str(meta.get("name")), "pairs")
    for folder, why in ((wanted, "eval.data"), (own, "the corpus's own")):
        if holds_pairs(folder):
            return folder, why
    raise UserError(
        f"{wanted}: no minimal pairs there, nor in {own}; `python prepare.py` provides them, or give --data DIR"
    )


def read_pairs(path, limit=None, split="all", good=None, bad=None, group=None):
    """(pairs, info) of a folder of files of pairs, or of one such file.

    A pair is {good, bad, uid, phenomenon, field, id, dev, filtered}, see read_pair. limit: only the first so many of
    each paradigm; split: all | dev | test. good, bad, group: the keys or columns of the two sentences and of the
    paradigm, default sentence_good, sentence_bad, and UID or else the file's name. info: {benchmark, data (the path),
    sha256, warnings, incomplete}. Raises UserError naming file and line.
    """
    everything, digest = [], hashlib.sha256()
    for file in data_files(path):
        text = read_text(file, "save it as UTF-8 text, or fetch it again")
        digest.update(f"{os.path.basename(file)}\0{text}\0".encode())
        pairs = read_file(file, text, good or "sentence_good", bad or "sentence_bad", group)
        if not pairs:
            raise UserError(f"{file}: empty; fetch it again or remove it")
        everything += pairs
    benchmark, warnings = recognise(everything, path)
    info = {"benchmark": benchmark, "data": str(path), "sha256": digest.hexdigest()}
    info |= {"warnings": warnings, "incomplete": bool(warnings)}

    kept = [pair for pair in everything if split == "all" or pair["dev"] == (split == "dev")]
    if not kept:
        raise UserError(f"{path}: none of its {len(everything)} pairs is in the split `{split}`; use --split all")
    if limit is not None:
        kept = first_of_each(kept, limit)
    if len(kept) < len(everything):
        warnings.append(f"a subset, as asked for: {len(kept):,} of {len(everything):,} pairs")
    return kept, info


def data_files(path, endings=PAIR_FILES):
    """The files with one of these endings in a folder, sorted by name, or the one file that `path` is."""
    if os.path.isfile(path):
        return [path]
    names = sorted(os.listdir(path)) if os.path.isdir(path) else []
    files = [os.path.join(path, name) for name in names if name.endswith(endings)]
    if not files:
        kinds = " or ".join(f"*{ending}" for ending in endings)
        raise UserError(f"{path}: no folder with {kinds} files; give one, such as `python prepare.py` provides")
    return files


def read_file(file, text, good, bad, group):
    """The pairs in the text of one file."""
    rows = table_rows if file.endswith((".csv", ".tsv")) else json_rows
    pairs = []
    for index, (number, row) in enumerate(rows(file, text)):
        try:
            pairs.append(read_pair(row, pathlib.Path(file).stem, index, good, bad, group))
        except ValueError as e:
            raise bad_line(file, number, e) from None
    return pairs


def bad_line(file, number, reason):
    return UserError(f"{file}:{number}: {reason}; mend the line or fetch the file again")


def json_rows(file, text):
    """(number of the line, what it holds) of each line of a JSONL file that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise bad_line(file, number, "not valid JSON, or cut short") from None
            yield number, row


def table_rows(file, text):
    """(number of the first line, {column: text}) of each row of a CSV or TSV file that is not blank.

    The first row names the columns. They are separated by tabs, commas or semicolons, whichever it has most of.
    """
    separator = max("\t,;", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    columns, number = None, 1
    try:
        for row in reader:
            if columns is None:
                columns = row
            elif any(row):
                if len(row) != len(columns):
                    raise csv.Error(f"{len(row)} fields in a table of {len(columns)} columns")
                yield number, dict(zip(columns, row))
            number = reader.line_num + 1
    except csv.Error as e:
        raise bad_line(file, number, e) from None


def read_pair(row, stem, index, good, bad, group):
    """A row of a file as a pair; ValueError if it is none.

    uid: its paradigm; phenomenon, field: None if the file has none; dev: whether it belongs to the tenth on which
    recipes may be chosen; filtered: whether it is numbered by pair_id, as in the BabyLM challenge's files, instead of
    pairID.
    """
    if not isinstance(row, dict):
        raise ValueError(f"not an object with {good} and {bad}")
    for key in filter(None, (good, bad, group)):
        if key not in row:
            found = ", ".join(list(row)[:40]) or "no keys at all"
            raise ValueError(f"no `{key}` among {found}; say which to take with --good, --bad and --group")
        if not isinstance(row[key], str) or not row[key].strip():
            raise ValueError(f"`{key}` is empty or not text")
    number = str(row.get("pairID", row.get("pair_id", index)))
    pair = {
        "good": row[good],
        "bad": row[bad],
        "uid": row[group] if group else named(row, "UID") or stem,
        "phenomenon": named(row, "linguistics_term", "phenomenon", "linguistic_phenomenon"),
        "field": named(row, "field"),
        "id": number,
        "dev": int(number if number.isdecimal() else index) % 10 == 0,
        "filtered": "pair_id" in row,
    }
    json.dumps(pair, ensure_ascii=False).encode()  # ValueError for half a character, which no file can hold
    return pair


def named(row, *keys):
    """The text under the first of these keys that has one, in the spelling that is used here; None if none has."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, str) and value:
            return SAME.get(value, value)
    return None


def first_of_each(pairs, limit):
    """The first so many pairs of each paradigm, in their order."""
    seen, kept = Counter(), []
    for pair in pairs:
        seen[pair["uid"]] += 1
        if seen[pair["uid"]] <= limit:
            kept.append(pair)
    return kept


def recognise(pairs, path):
    """(what every output calls these pairs; warnings if they are BLiMP's, but not all of them)."""
    counts = Counter(pair["uid"] for pair in pairs)
    missing = [uid for uid in BLIMP if uid not in counts]
    extra = [uid for uid in counts if uid not in BLIMP]
    if len(extra) >= len(counts) / 2:
        folder, name = os.path.split(os.path.abspath(path))
        with contextlib.suppress(UserError):  # a meta.json beside somebody's own pairs need not be one of ours
            if name == "pairs" and read_meta(folder).get("source") == "pocket":  # as prepare.py lays them out
                return "POCKET ENGLISH PAIRS, NOT BLiMP", []
        return f"pairs of {name}, not BLiMP", []

    # All of BLiMP may say pair_id too, as on the Hub; the filtered paradigms are shorter
    filtered = any(pair["filtered"] for pair in pairs) and max(counts.values()) < 1000
    wrong = []
    for uid, count in counts.items():
        expected = BLIMP.get(uid) if filtered else 1000
        if uid in BLIMP and count != expected:
            wrong.append(f"{uid} {count} instead of {expected}")
    warnings = []
    if missing:
        warnings.append(f"{len(missing)} of BLiMP's 67 paradigms are missing: {some(missing)}")
    if extra:
        warnings.append(f"counted as paradigms, but not among BLiMP's: {some(extra)}")
    if wrong:
        warnings.append(f"wrong number of pairs: {some(wrong)}")
    return "BLiMP, BabyLM's filtered subset" if filtered else "BLiMP", warnings


def some(names):
    """The first three, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
