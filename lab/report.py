"""Minimal pairs in, report out: what eval_blimp.py reads, and what it says about scores. Nothing here touches a model.

- files of pairs, and what is wrong with them: read_pairs
- accuracies, intervals, comparison of two models: summarize, compare
- table, CSV, BabyLM submission, plots
"""
import csv
import hashlib
import io
import json
import math
import os
import sys

import numpy as np

from lab.files import UserError

# BLiMP's 67 paradigms, 1000 pairs each, and how many of them the BabyLM challenge's vocabulary filter keeps (59,875 in all)
BLIMP = {name: int(size) for name, size in (item.split(":") for item in """
adjunct_island:928 anaphor_gender_agreement:971 anaphor_number_agreement:931 animate_subject_passive:895 animate_subject_trans:923 causative:818 complex_NP_island:846
coordinate_structure_constraint_complex_left_branch:906 coordinate_structure_constraint_object_extraction:949 determiner_noun_agreement_1:929
determiner_noun_agreement_2:931 determiner_noun_agreement_irregular_1:681 determiner_noun_agreement_irregular_2:820 determiner_noun_agreement_with_adj_2:941
determiner_noun_agreement_with_adj_irregular_1:718 determiner_noun_agreement_with_adj_irregular_2:840 determiner_noun_agreement_with_adjective_1:933
distractor_agreement_relational_noun:788 distractor_agreement_relative_clause:871 drop_argument:920 ellipsis_n_bar_1:802 ellipsis_n_bar_2:828
existential_there_object_raising:812 existential_there_quantifiers_1:930 existential_there_quantifiers_2:911 existential_there_subject_raising:924
expletive_it_object_raising:759 inchoative:855 intransitive:868 irregular_past_participle_adjectives:961 irregular_past_participle_verbs:942
irregular_plural_subject_verb_agreement_1:804 irregular_plural_subject_verb_agreement_2:892 left_branch_island_echo_question:947 left_branch_island_simple_question:951
matrix_question_npi_licensor_present:929 npi_present_1:909 npi_present_2:914 only_npi_licensor_present:882 only_npi_scope:837 passive_1:840 passive_2:903
principle_A_c_command:946 principle_A_case_1:912 principle_A_case_2:915 principle_A_domain_1:914 principle_A_domain_2:915 principle_A_domain_3:941
principle_A_reconstruction:967 regular_plural_subject_verb_agreement_1:890 regular_plural_subject_verb_agreement_2:945 sentential_negation_npi_licensor_present:919
sentential_negation_npi_scope:871 sentential_subject_island:961 superlative_quantifiers_1:979 superlative_quantifiers_2:986 tough_vs_raising_1:948 tough_vs_raising_2:920
transitive:868 wh_island:960 wh_questions_object_gap:859 wh_questions_subject_gap:898 wh_questions_subject_gap_long_distance:857 wh_vs_that_no_gap:861
wh_vs_that_no_gap_long_distance:875 wh_vs_that_with_gap:919 wh_vs_that_with_gap_long_distance:910""".split())}
SAME = {"s-selection": "argument_structure", "syntax/semantics": "syntax_semantics"}    # 12 phenomena of the paper, not 13 terms; 4 fields, not 5 spellings
REFERENCES = {"chance": 50.0, "n-gram": 61.2, "LSTM": 69.8, "GPT-2 large": 83.0}        # of the paper's corrected files


# ---------------------------------------------------------------------------------------------------------------------
# Minimal pairs


def read_pairs(path, limit=None, split="all"):
    """(pairs, info) of a folder of *.jsonl, or of one such file: each line an object with sentence_good and sentence_bad.

    A pair is {good, bad, uid, phenomenon, field, id, dev, one-prefix, two-prefix}; see read_pair. limit: the first so many of
    each paradigm; split: all | dev | test. info: {benchmark, data (the path), sha256, warnings, incomplete}.
    Raises UserError naming file and line.
    """
    files = [path] if os.path.isfile(path) else sorted(os.path.join(path, f) for f in os.listdir(path) if f.endswith(".jsonl")) if os.path.isdir(path) else []
    if not files:
        raise UserError(f"{path}: {'no *.jsonl file in it' if os.path.isdir(path) else 'no such folder'}; give a folder of minimal pairs, such as `python prepare.py` provides")
    pairs, digest = [], hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as f:
                content = f.read()
        except OSError as e:
            raise UserError(f"{file}: cannot be read ({e.strerror})") from None
        digest.update(os.path.basename(file).encode() + b"\0" + content + b"\0")
        stem, before = os.path.splitext(os.path.basename(file))[0], len(pairs)
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                try:
                    pairs.append(read_pair(json.loads(line.decode("utf-8-sig")), stem, number - 1))
                except (ValueError, RecursionError) as e:
                    reason = {json.JSONDecodeError: "not valid JSON, or cut short", UnicodeDecodeError: "not UTF-8 text", UnicodeEncodeError: "not Unicode text",
                              RecursionError: "nested too deeply"}.get(type(e), e)
                    raise UserError(f"{file}:{number}: {reason}; mend the line or fetch the file again") from None
        if len(pairs) == before:
            raise UserError(f"{file}: empty; fetch it again or remove it")
    benchmark, warnings = recognise(pairs, path)
    info = {"benchmark": benchmark, "data": str(path), "sha256": digest.hexdigest(), "warnings": warnings, "incomplete": bool(warnings)}
    kept = pairs if split == "all" else [p for p in pairs if p["dev"] == (split == "dev")]
    if limit is not None:
        kept = [kept[i] for i in sorted(i for members in group(kept, "uid").values() for i in members[:limit])]
    if not kept:
        raise UserError(f"{path}: none of its {len(pairs)} pairs is in the split `{split}`; use all")
    if len(kept) < len(pairs):
        warnings.append(f"a subset, as asked for: {len(kept):,} of {len(pairs):,} pairs")
    return kept, info


def read_pair(row, stem, index):
    """One line of a file as a pair: uid is its paradigm, dev whether it belongs to the tenth that recipes may be chosen on. ValueError if it is none."""
    if not isinstance(row, dict):
        raise ValueError("not an object with sentence_good and sentence_bad")
    for key in ("sentence_good", "sentence_bad"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ValueError(f"`{key}` is missing, empty or not text")
    "".join(value for value in row.values() if isinstance(value, str)).encode()     # JSON can spell half a character, "\\ud800", that no file can hold

    def text(*keys):
        value = next((row[key] for key in keys if isinstance(row.get(key), str) and row[key]), None)
        return value and sys.intern(SAME.get(value, value))                 # one text, not one for each pair
    number = row.get("pairID", row.get("pair_id", index))                   # BLiMP's files, and the filtered ones
    try:
        dev = int(number) % 10 == 0
    except (TypeError, ValueError, OverflowError):
        dev = index % 10 == 0
    return {"good": row["sentence_good"], "bad": row["sentence_bad"], "uid": text("UID") or stem, "phenomenon": text("linguistics_term", "phenomenon"), "field": text("field"),
            "id": str(number), "dev": dev, "filtered": "pair_id" in row,
            "one-prefix": continuations(row, "one_prefix_prefix", "one_prefix_prefix", "one_prefix_word_good", "one_prefix_word_bad"),
            "two-prefix": continuations(row, "two_prefix_prefix_good", "two_prefix_prefix_bad", "two_prefix_word", "two_prefix_word")}


def continuations(row, *keys):
    """((good text, its prefix), (bad text, its prefix)), the text being the prefix and one more word; None if the row lacks them."""
    values = [row.get(key) for key in keys]
    if not all(isinstance(value, str) and value.strip() for value in values):
        return None
    good, bad, good_word, bad_word = (value.strip() for value in values)    # some words come with a space before them
    return (f"{good} {good_word}", good), (f"{bad} {bad_word}", bad)


def recognise(pairs, path):
    """(what these pairs are, for every output to say; warnings, where they are BLiMP's and not all there)."""
    counts = {uid: len(members) for uid, members in group(pairs, "uid").items()}
    known = [uid for uid in counts if uid in BLIMP]
    if len(known) <= len(counts) / 2:
        return ("POCKET ENGLISH PAIRS, NOT BLiMP" if of_pocket_english(path) else f"pairs of {os.path.basename(os.path.abspath(path))}, not BLiMP"), []
    filtered, warnings = any(p["filtered"] for p in pairs), []
    if missing := [uid for uid in BLIMP if uid not in counts]:
        warnings.append(f"{len(missing)} of BLiMP's 67 paradigms are missing: {', '.join(missing)}")
    if extra := [uid for uid in counts if uid not in BLIMP]:
        warnings.append(f"counted as paradigms, but not BLiMP's: {', '.join(extra)}")
    if wrong := [f"{uid} {counts[uid]} instead of {BLIMP[uid] if filtered else 1000}" for uid in known if counts[uid] != (BLIMP[uid] if filtered else 1000)]:
        warnings.append(f"wrong number of pairs: {', '.join(wrong)}")
    return "BLiMP, BabyLM's filtered subset" if filtered else "BLiMP", warnings


def of_pocket_english(path):
    """Whether meta.json beside the folder says that the corpus is Pocket English."""
    try:
        with open(os.path.join(os.path.dirname(os.path.abspath(path)), "meta.json"), encoding="utf-8") as f:
            return json.load(f)["source"] == "pocket"
    except (OSError, ValueError, LookupError, TypeError):
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def group(pairs, key):
    """{value: indices of the pairs that have it}, in order of appearance; pairs without one are left out."""
    groups = {}
    for i, pair in enumerate(pairs):
        if pair[key] is not None:
            groups.setdefault(pair[key], []).append(i)
    return {name: np.array(members) for name, members in groups.items()}


def wilson(right, n, z=1.959964):
    """95 % interval of a share, right of n (Wilson 1927): inside [0, 1], and not empty at 0 or 1."""
    p, zz = right / n, z * z / n
    middle, half = (p + zz / 2) / (1 + zz), z / (1 + zz) * math.sqrt(p * (1 - p) / n + zz / n / 4)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def bootstrap(right, pairs, samples=10000):
    """95 % interval of the mean over paradigms, the pairs of each drawn again: the share right of n draws is Binomial(n, right / n) / n."""
    right, pairs = np.array(right), np.array(pairs)
    means = (np.random.default_rng(0).binomial(pairs, right / pairs, (samples, len(pairs))) / pairs).mean(1)
    return np.percentile(means, [2.5, 97.5]).tolist()


def mcnemar(gained, lost):
    """Two-sided exact p-value of gains and losses being equally likely (McNemar 1947; a binomial test of their number)."""
    n, k = gained + lost, min(gained, lost)
    return min(1.0, 2 * math.fsum(math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)) for i in range(k + 1)))


def summarize(pairs, scores, tokens, right):
    """All numbers about scores (N, 2) and lengths in tokens (N, 2) of (good, bad) and decisions (N). Accuracies are 0..1, margins nats.

    `accuracy` is the mean over paradigms of `right`; _strict, _ties_half and _ties_correct are that for each view of ties,
    _dev and _test for the two parts of the pairs, _phenomena and _fields the means over those, _micro the share of all pairs.
    """
    margin = scores[:, 0] - scores[:, 1]
    tie, dev = margin == 0, np.array([p["dev"] for p in pairs])
    paradigms = group(pairs, "uid")

    def macro(values, chosen=None):
        parts = [m if chosen is None else m[chosen[m]] for m in paradigms.values()]
        return float(np.mean([values[m].mean() for m in parts if len(m)])) if any(map(len, parts)) else None

    def summary(members):
        return {"accuracy": float(np.mean([right[m].mean() for m in members])), "interval": bootstrap([right[m].sum() for m in members], [len(m) for m in members]),
                "paradigms": len(members), "pairs": sum(map(len, members)), "ties": int(sum(tie[m].sum() for m in members)),
                "margin": float(np.mean([margin[m].mean() for m in members]))}

    total = summary(list(paradigms.values()))
    result = {"accuracy": total["accuracy"], "accuracy_interval": total["interval"], "accuracy_strict": macro(margin > 0),
              "accuracy_ties_half": macro((margin > 0) + tie / 2), "accuracy_ties_correct": macro(margin >= 0),
              "accuracy_dev": macro(right, dev), "accuracy_test": macro(right, ~dev), "accuracy_micro": float(right.mean()), "margin": total["margin"],
              "pairs": len(pairs), "ties": int(tie.sum()), "identical_pairs": sum(p["good"] == p["bad"] for p in pairs), "nan": int(np.isnan(margin).sum()),
              "paradigms": {uid: {**summary([m]), "interval": wilson(int(right[m].sum()), len(m)), "phenomenon": pairs[m[0]]["phenomenon"], "field": pairs[m[0]]["field"]}
                            for uid, m in paradigms.items()}}
    for names, key in (("phenomena", "phenomenon"), ("fields", "field")):
        result[names] = {name: summary([m for m in paradigms.values() if pairs[m[0]][key] == name]) for name in sorted({pairs[m[0]][key] for m in paradigms.values()} - {None})}
        result[f"accuracy_{names}"] = float(np.mean([g["accuracy"] for g in result[names].values()])) if result[names] else None
    longer = np.sign(tokens[:, 0] - tokens[:, 1])
    result["by_length"] = {name: {"accuracy": float(right[longer == sign].mean()) if (longer == sign).any() else None, "pairs": int((longer == sign).sum())}
                           for name, sign in (("shorter", -1), ("as long", 0), ("longer", 1))}
    result["hardest"] = [{"uid": pairs[i]["uid"], "id": pairs[i]["id"], "margin": float(margin[i]), "good": pairs[i]["good"], "bad": pairs[i]["bad"]}
                         for i in np.argsort(margin, kind="stable")[:10]]
    return result


def compare(pairs, right, other):
    """Decisions (N) of two evaluations of the same pairs: difference of the means over paradigms, with a paired bootstrap; McNemar; by paradigm."""
    rows, draws, rng = {}, 0, np.random.default_rng(0)
    paradigms = group(pairs, "uid")
    for uid, m in paradigms.items():
        n, gained, lost = len(m), int((right[m] & ~other[m]).sum()), int((~right[m] & other[m]).sum())
        drawn = rng.multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], 10000)      # a pair is drawn with both its outcomes
        drawn = (drawn[:, 0] - drawn[:, 1]) / n
        rows[uid] = {"difference": (gained - lost) / n, "interval": np.percentile(drawn, [2.5, 97.5]).tolist(), "gained": gained, "lost": lost}
        draws = draws + drawn / len(paradigms)
    gained, lost = sum(r["gained"] for r in rows.values()), sum(r["lost"] for r in rows.values())
    return {"difference": float(np.mean([r["difference"] for r in rows.values()])), "interval": np.percentile(draws, [2.5, 97.5]).tolist(),
            "p_bootstrap": float(min(1, 2 * min((draws <= 0).mean(), (draws >= 0).mean()))), "p_mcnemar": mcnemar(gained, lost),
            "changed": gained + lost, "gained": gained, "lost": lost, "pairs": len(pairs), "paradigms": rows}


# ---------------------------------------------------------------------------------------------------------------------
# Text and files


def percent(x, digits=2):
    return "-" if x is None else f"{100 * x:.{digits}f}"


def table(results, everything=False):
    """The last of the results in at most 100 columns: phenomena and fields, or without those, or with `everything`, paradigms."""
    r = results[-1]
    head = f"{'':<52}{'accuracy':>9}   {'95 % interval':<14}{'pairs':>7}{'ties':>6}{'margin':>8}"

    def line(name, g):
        low, high = g["interval"]
        return f"{name[:51]:<52}{percent(g['accuracy']):>9}   {f'{percent(low, 1)} - {percent(high, 1)}':<14}{g['pairs']:>7,}{g['ties']:>6,}{g['margin']:>8.2f}"
    lines = [f"{r['benchmark']}: {r['checkpoint']}", f"trained on {r['corpus']}"]
    for groups in ([r["paradigms"]] if everything or not r["phenomena"] else []) + [r["phenomena"], r["fields"]]:
        lines += ["", head, *(line(name, g) for name, g in groups.items())] if groups else []
    lines += ["", head, line(f"mean over {len(r['paradigms'])} paradigms", {**r, "interval": r["accuracy_interval"]})]
    for name, key in (("a tie is wrong", "strict"), ("a tie is half", "ties_half"), ("a tie is right", "ties_correct"), ("development pairs (pairID % 10 = 0)", "dev"),
                      ("test pairs (the others)", "test"), ("mean over phenomena", "phenomena"), ("mean over fields", "fields"), ("share of all pairs", "micro")):
        lines.append(f"  {name:<50}{percent(r['accuracy_' + key]):>9}")
    lines += [f"  {f'share of pairs where good is {name} in tokens':<50}{percent(g['accuracy']):>9}{g['pairs']:>24,}"
              for name, g in r["by_length"].items()]
    lines += ["", "hardest pairs"]
    for pair in r["hardest"][:5]:
        lines += [f"{pair['margin']:8.2f}  {pair['uid']} {pair['id']}", f"          + {pair['good']}", f"          - {pair['bad']}"]
    if len(results) > 1:
        lines += ["", f"{'checkpoint':<70}{'words seen':>16}{'accuracy':>12}"]
        lines += [f"{r['checkpoint'][-69:]:<70}{r['words'] or 0:>16,}{percent(r['accuracy']):>12}" for r in results]
    if c := r.get("comparison"):
        low, high = c["interval"]
        lines += ["", f"compared with {c['with']}",
                  f"  {100 * c['difference']:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f} (paired bootstrap, p = {c['p_bootstrap']:.2g})",
                  f"  {c['changed']:,} of {c['pairs']:,} decisions changed: {c['gained']:,} gained, {c['lost']:,} lost (McNemar, p = {c['p_mcnemar']:.2g})"]
        for uid, g in sorted(c["paradigms"].items(), key=lambda item: -abs(item[1]["difference"]))[:10]:
            lines += [f"  {uid[:51]:<52}{100 * g['difference']:+7.1f} {g['gained']:>6} gained {g['lost']:>6} lost"] if g["gained"] + g["lost"] else []
    return "\n".join(text if len(text) <= 100 else text[:97] + "..." for text in lines)


def rule(conventions):
    """What departs from the paper's rule in float32 on all pairs, or `BLiMP`."""
    usual = {"method": "full", "bos": True, "dtype": "float32", "split": "all"}
    return " ".join(f"{key}={value}" for key, value in conventions.items() if (value or None) != usual.get(key)) or "BLiMP"


def block(r):
    """Warnings, and the `key: value` lines that scripts read."""
    lines = [f"warning: {warning}" for warning in r["warnings"]]
    lines += [f"{key}: {r[key]:.6f}" for key in ("accuracy", "accuracy_ties_half", "accuracy_ties_correct", "accuracy_dev", "accuracy_test") if r[key] is not None]
    lines += [f"{key}: {r[key]}" for key in ("pairs", "ties", "nan")] + [f"paradigms: {len(r['paradigms'])}", f"incomplete: {str(r['incomplete']).lower()}"]
    lines += [f"rule: {rule(r['conventions'])}", f"seconds: {r['seconds']:.2f}"] + [f"sha256_{key}: {value}" for key, value in r["sha256"].items()]
    lines += [f"{key}: {r[key]}" for key in ("benchmark", "data", "corpus", "checkpoint")]
    return "\n".join(lines)


def pairs_csv(pairs, scores, tokens, right, checkpoint="", rule=""):
    """A line per pair: what it is, both sentences, both scores in nats (all digits), both lengths in tokens, the decision; whose, and by which rule."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow("uid id phenomenon field split good bad score_good score_bad margin tokens_good tokens_bad right tie checkpoint rule".split())
    for p, (good, bad), lengths, r in zip(pairs, scores.tolist(), tokens.tolist(), right.tolist()):
        who = [p["uid"], p["id"], p["phenomenon"], p["field"], "dev" if p["dev"] else "test", p["good"], p["bad"]]
        writer.writerow([*who, good, bad, good - bad, *lengths, int(r), int(good == bad), checkpoint, rule])
    return out.getvalue()


def read_decisions(path, pairs):
    """The decisions (N) in a file of pairs_csv; UserError if it is none or holds other pairs."""
    try:
        with open(path, encoding="utf-8", newline="") as f:
            rows = [(row["good"], row["bad"], row["right"] == "1") for row in csv.DictReader(f)]
    except (OSError, ValueError, KeyError, csv.Error) as e:
        raise UserError(f"{path}: not a file that --csv wrote ({getattr(e, 'strerror', None) or e})") from None
    if [row[:2] for row in rows] != [(p["good"], p["bad"]) for p in pairs]:
        raise UserError(f"{path}: holds {len(rows):,} pairs, which are not the {len(pairs):,} scored now; write it again with the same --data")
    return np.array([row[2] for row in rows])


def predictions(pairs, right):
    """The BabyLM challenge's submission, {uid: {"predictions": [{"id": "uid_0", "pred": the chosen sentence}, ...]}}, in the order of the files."""
    chosen = {}
    for pair, r in zip(pairs, right):
        rows = chosen.setdefault(pair["uid"], {"predictions": []})["predictions"]
        rows.append({"id": f"{pair['uid']}_{len(rows)}", "pred": pair["good"] if r else pair["bad"]})
    return chosen


def plot(results, f):
    """A PNG into the open file f: bars by phenomenon with intervals; of several results, accuracy against words seen."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    last = results[-1]
    kind = "phenomena" if last["phenomena"] else "paradigms"
    marks = REFERENCES if last["benchmark"].startswith("BLiMP") else {"chance": 50.0}
    figure, axes = plt.subplots(figsize=(9, max(5, 0.3 * len(last[kind]) + 2)), dpi=100, layout="constrained")
    if len(results) == 1:
        numbers = 100 * np.array([[g["accuracy"], *g["interval"]] for g in last[kind].values()])
        axes.barh(list(last[kind]), numbers[:, 0], xerr=np.abs(numbers[:, 1:] - numbers[:, :1]).T, color="tab:blue", alpha=0.8, error_kw={"capsize": 2, "lw": 1})
        axes.axvline(100 * last["accuracy"], color="black", lw=1.5)
        for name, value in marks.items():
            axes.axvline(value, color="gray", lw=1, ls=":")
            axes.text(value, -0.65, f" {name} {value:g}", fontsize=7, rotation=35, color="gray")
        axes.set(xlim=(0, 100), ylim=(len(last[kind]) - 0.4, -0.6), xlabel="accuracy in %, 95 % intervals")
    else:
        words = [(r["words"] or 0) / 1e6 for r in results]
        for i, name in enumerate(last[kind]):
            style = {"color": f"C{i % 10}", "ls": ("-", "--", ":", "-.")[i // 10 % 4]}
            axes.plot(words, [100 * r[kind][name]["accuracy"] for r in results], lw=1, alpha=0.8, marker=".", label=name.replace("_", " "), **style)
        axes.plot(words, [100 * r["accuracy"] for r in results], color="black", lw=2.5, marker="o", label="mean over paradigms")
        for name, value in marks.items():
            axes.axhline(value, color="gray", lw=1, ls=":")
            axes.annotate(name, (1.0, value), xycoords=("axes fraction", "data"), fontsize=7, color="gray", ha="right", va="bottom")
        axes.set(xlabel="words seen in training, millions", ylabel="accuracy in %")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{last['benchmark']}: {percent(last['accuracy'])}\n{last['checkpoint']}, trained on {last['corpus']}", fontsize=9)
    figure.savefig(f, format="png", metadata={"Description": f"sha256 {last['sha256']}, rule {rule(last['conventions'])}"})
    plt.close(figure)
