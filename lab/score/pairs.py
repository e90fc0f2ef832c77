"""Minimal pairs: folders of *.jsonl, *.csv and *.tsv files with a pair in each line.

Their keys or columns are BLiMP's, sentence_good and sentence_bad, or what --good, --bad and --group say; docs/pairs.md
has examples.
"""

import csv
import hashlib
import io
import json
import os

from lab.files import UserError, read_json

ENDINGS = (".jsonl", ".csv", ".tsv")

# BLiMP's 67 paradigms have 1000 pairs each. Beside each name: how many the BabyLM challenge's vocabulary filter keeps.
SIZES = """
adjunct_island 928 anaphor_gender_agreement 971 anaphor_number_agreement 931 animate_subject_passive 895
animate_subject_trans 923 causative 818 complex_NP_island 846 coordinate_structure_constraint_complex_left_branch 906
coordinate_structure_constraint_object_extraction 949 determiner_noun_agreement_1 929 determiner_noun_agreement_2 931
determiner_noun_agreement_irregular_1 681 determiner_noun_agreement_irregular_2 820
determiner_noun_agreement_with_adj_2 941 determiner_noun_agreement_with_adj_irregular_1 718
determiner_noun_agreement_with_adj_irregular_2 840 determiner_noun_agreement_with_adjective_1 933
distractor_agreement_relational_noun 788 distractor_agreement_relative_clause 871 drop_argument 920
ellipsis_n_bar_1 802 ellipsis_n_bar_2 828 existential_there_object_raising 812 existential_there_quantifiers_1 930
existential_there_quantifiers_2 911 existential_there_subject_raising 924 expletive_it_object_raising 759
inchoative 855 intransitive 868 irregular_past_participle_adjectives 961 irregular_past_participle_verbs 942
irregular_plural_subject_verb_agreement_1 804 irregular_plural_subject_verb_agreement_2 892
left_branch_island_echo_question 947 left_branch_island_simple_question 951
matrix_question_npi_licensor_present 929 npi_present_1 909 npi_present_2 914 only_npi_licensor_present 882
only_npi_scope 837 passive_1 840 passive_2 903 principle_A_c_command 946 principle_A_case_1 912
principle_A_case_2 915 principle_A_domain_1 914 principle_A_domain_2 915 principle_A_domain_3 941
principle_A_reconstruction 967 regular_plural_subject_verb_agreement_1 890
regular_plural_subject_verb_agreement_2 945 sentential_negation_npi_licensor_present 919
sentential_negation_npi_scope 871 sentential_subject_island 961 superlative_quantifiers_1 979
superlative_quantifiers_2 986 tough_vs_raising_1 948 tough_vs_raising_2 920 transitive 868 wh_island 960
wh_questions_object_gap 859 wh_questions_subject_gap 898 wh_questions_subject_gap_long_distance 857
wh_vs_that_no_gap 861 wh_vs_that_no_gap_long_distance 875 wh_vs_that_with_gap 919
wh_vs_that_with_gap_long_distance 910
""".split()
BLIMP = {name: int(kept) for name, kept in zip(SIZES[::2], SIZES[1::2])}

# The paper has 12 phenomena, the files 13 terms; 4 fields, the files 5 spellings.
SAME = {"s-selection": "argument_structure", "syntax/semantics": "syntax_semantics"}


def find_data(wanted, meta):
    """(folder, why): `wanted`, config.yaml's eval.data, if it holds pairs, else the folder of the corpus in `meta`."""
    own = os.path.join("data", str(meta.get("name")), "pairs")
    for folder, why in ((wanted, "eval.data"), (own, "the corpus's own")):
        if os.path.isdir(folder) and any(name.endswith(ENDINGS) for name in os.listdir(folder)):
            return folder, why
    raise UserError(
        f"{wanted}: no minimal pairs there, nor in {own}; `python prepare.py` provides them, or give --data DIR"
    )


def read_pairs(path, limit=None, split="all", good=None, bad=None, group=None):
    """(pairs, info) of a folder of files of pairs, or of one such file.

    A pair is {good, bad, uid, phenomenon, field, id, dev, filtered}, see read_pair. limit: the first so many of each
    paradigm; split: all | dev | test. good, bad, group: the keys or columns of both sentences and of the paradigm,
    default sentence_good, sentence_bad, and UID or else the file's name. info: {benchmark, data (the path), sha256,
    warnings, incomplete}. Raises UserError naming file and line.
    """
    everything, digest = [], hashlib.sha256()
    for file in data_files(path):
        content = read_bytes(file)
        digest.update(os.path.basename(file).encode() + b"\0" + content + b"\0")
        pairs = read_file(file, content, good or "sentence_good", bad or "sentence_bad", group)
        if not pairs:
            raise UserError(f"{file}: empty; fetch it again or remove it")
        everything += pairs
    benchmark, warnings = recognise(everything, path)
    incomplete = bool(warnings)

    kept = [pair for pair in everything if split == "all" or pair["dev"] == (split == "dev")]
    if not kept:
        raise UserError(f"{path}: none of its {len(everything)} pairs is in the split `{split}`; use all")
    if limit is not None:
        kept = first_of_each(kept, limit)
    if len(kept) < len(everything):
        warnings.append(f"a subset, as asked for: {len(kept):,} of {len(everything):,} pairs")
    return kept, {
        "benchmark": benchmark,
        "data": str(path),
        "sha256": digest.hexdigest(),
        "warnings": warnings,
        "incomplete": incomplete,
    }


def data_files(path, endings=ENDINGS):
    """The files with one of these endings in a folder, sorted by name, or the one file that `path` is."""
    if os.path.isfile(path):
        return [path]
    advice = "give a folder of minimal pairs, such as `python prepare.py` provides"
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such folder; {advice}")
    files = [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(endings)]
    if not files:
        raise UserError(f"{path}: no {' or '.join('*' + ending for ending in endings)} file in it; {advice}")
    return files


def read_bytes(file):
    try:
        with open(file, "rb") as f:
            return f.read()
    except OSError as e:
        raise UserError(f"{file}: cannot be read ({e.strerror})") from None


def read_file(file, content, good, bad, group):
    """The pairs in the bytes of one file."""
    rows = table_rows if file.endswith((".csv", ".tsv")) else json_rows
    stem = os.path.splitext(os.path.basename(file))[0]
    pairs = []
    for index, (number, row) in enumerate(rows(file, content)):
        try:
            pairs.append(read_pair(row, stem, index, good, bad, group))
        except ValueError as e:
            raise bad_line(file, number, e) from None
    return pairs


def bad_line(file, number, reason):
    return UserError(f"{file}:{number}: {reason}; mend the line or fetch the file again")


def json_rows(file, content):
    """(number of the line, what it holds) of each line of a JSONL file that is not blank."""
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError as e:
                raise bad_line(file, number, e) from None
            yield number, row


def parse_json(line):
    """What a line of bytes says in JSON; ValueError with the reason if it is none."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("not valid JSON, or cut short") from None


def table_rows(file, content):
    """(number of the first line, {column: text}) of each row of a CSV or TSV file that is not blank.

    The first row names the columns. They are separated by tabs, commas or semicolons, whichever it has most of.
    """
    try:
        table = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise bad_line(file, content.count(b"\n", 0, e.start) + 1, "not UTF-8 text") from None
    separator = max("\t,;", key=table.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(table, newline=""), delimiter=separator, strict=True)
    columns, number = None, 1
    try:
        for row in reader:
            if columns is None:
                columns = row
            elif any(row):
                if len(row) != len(columns):
                    raise csv.Error(f"{len(row)} fields where {len(columns)} columns have a name")
                yield number, dict(zip(columns, row))
            number = reader.line_num + 1
    except csv.Error as e:
        raise bad_line(file, number, e) from None


def read_pair(row, stem, index, good, bad, group):
    """A row of a file as a pair; ValueError if it is none.

    uid: its paradigm; phenomenon, field: None if the file has none; dev: whether it belongs to the tenth that recipes
    may be chosen on; filtered: whether it is numbered by pair_id, as in the BabyLM challenge's files, not by pairID.
    """
    if not isinstance(row, dict):
        raise ValueError(f"not an object with {good} and {bad}")
    for key in (good, bad, group):
        if key is None:
            continue
        if key not in row:
            found = ", ".join(list(map(str, row))[:40]) or "nothing"
            raise ValueError(f"no `{key}`, but {found}: name what to take with --good, --bad and --group")
        if not isinstance(row[key], str) or not row[key].strip():
            raise ValueError(f"`{key}` is empty or not text")
    number = row.get("pairID", row.get("pair_id", index))
    try:
        dev = int(number) % 10 == 0
    except (TypeError, ValueError, OverflowError):
        dev = index % 10 == 0
    pair = {
        "good": row[good],
        "bad": row[bad],
        "uid": row[group] if group else named(row, "UID") or stem,
        "phenomenon": named(row, "linguistics_term", "phenomenon", "linguistic_phenomenon"),
        "field": named(row, "field"),
        "id": str(number),
        "dev": dev,
        "filtered": "pair_id" in row,
    }
    try:  # JSON can spell half a character, "\ud800", that no file can hold
        "".join(value for value in pair.values() if isinstance(value, str)).encode()
    except UnicodeEncodeError:
        raise ValueError("not Unicode text") from None
    return pair


def named(row, *keys):
    """The text under the first of these keys that has one, in the spelling that is used here; None if none has."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, str) and value:
            return SAME.get(value, value)
    return None


def first_of_each(pairs, limit):
    """The first so many pairs of each paradigm, in the order they were in."""
    seen, kept = {}, []
    for pair in pairs:
        seen[pair["uid"]] = seen.get(pair["uid"], 0) + 1
        if seen[pair["uid"]] <= limit:
            kept.append(pair)
    return kept


def recognise(pairs, path):
    """(what these pairs are, as every output says; warnings if they are BLiMP's, but not all of them)."""
    counts = {}
    for pair in pairs:
        counts[pair["uid"]] = counts.get(pair["uid"], 0) + 1
    missing = [uid for uid in BLIMP if uid not in counts]
    extra = [uid for uid in counts if uid not in BLIMP]
    if len(extra) >= len(counts) / 2:
        if of_pocket_english(path):
            return "POCKET ENGLISH PAIRS, NOT BLiMP", []
        return f"pairs of {os.path.basename(os.path.abspath(path))}, not BLiMP", []

    filtered = any(pair["filtered"] for pair in pairs) and max(counts.values()) < 1000  # the whole one may say pair_id
    wrong = []
    for uid, count in counts.items():
        expected = BLIMP.get(uid) if filtered else 1000
        if uid in BLIMP and count != expected:
            wrong.append(f"{uid} {count} instead of {expected}")
    warnings = []
    if missing:
        warnings.append(f"{len(missing)} of BLiMP's 67 paradigms are missing: {some(missing)}")
    if extra:
        warnings.append(f"counted as paradigms, but not BLiMP's: {some(extra)}")
    if wrong:
        warnings.append(f"wrong number of pairs: {some(wrong)}")
    return "BLiMP, BabyLM's filtered subset" if filtered else "BLiMP", warnings


def some(names):
    """The first three, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def of_pocket_english(path):
    """Whether meta.json beside the folder says that the corpus is Pocket English."""
    meta = read_json(os.path.join(os.path.dirname(os.path.abspath(path)), "meta.json"))
    return meta.get("source") == "pocket"
