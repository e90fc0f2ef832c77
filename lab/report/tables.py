"""What eval_blimp.py prints and writes: table, block of `key: value`, CSV of pairs, BabyLM's predictions."""

import csv
import io

WIDTH = 100  # columns of the table
VIEWS = {
    "strict": "a tie is wrong",
    "ties_half": "a tie is half",
    "ties_correct": "a tie is correct",
    "dev": "development pairs (pairID % 10 = 0)",
    "test": "test pairs (the others)",
    "phenomena": "mean over phenomena",
    "fields": "mean over fields",
    "micro": "share of all pairs",
}


def percent(share, digits=2):
    return "-" if share is None else f"{100 * share:.{digits}f}"


def table(results, show_paradigms=False):
    """The last of the results in at most WIDTH columns; the learning curve of several; the comparison if any."""
    result = results[-1]
    lines = [f"{result['checkpoint']}, trained on {result['corpus']}"]
    if show_paradigms or not result["phenomena"]:
        lines += section(result["paradigms"])
    lines += section(result["phenomena"])
    lines += section(result["fields"])
    total = {**result, "interval": result["accuracy_interval"]}
    lines += section({f"mean over {len(result['paradigms'])} paradigms": total})
    for key, name in VIEWS.items():
        if "tie" in name and not result["ties"]:
            continue
        lines.append(f"  {name:<50}{percent(result[f'accuracy_{key}']):>9}")
    lines += ["", "hardest pairs"]
    for pair in result["hardest"][:5]:
        lines.append(f"{pair['margin']:8.2f}  {pair['uid']} {pair['id']}")
        lines.append(f"          + {pair['good']}")
        lines.append(f"          - {pair['bad']}")
    if len(results) > 1:
        lines += learning_curve(results)
    if "comparison" in result:
        lines += comparison(result["comparison"])
    return "\n".join(line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in lines)


def section(groups):
    """A part of the table: a row for each {name: summary}."""
    if not groups:
        return []
    lines = ["", f"{'':<52}{'accuracy':>9}   {'95 % interval':<14}{'pairs':>7}{'ties':>6}{'margin':>8}"]
    for name, group in groups.items():
        low, high = group["interval"]
        interval = f"{percent(low, 1)} - {percent(high, 1)}"
        lines.append(
            f"{name[:51]:<52}{percent(group['accuracy']):>9}   {interval:<14}"
            f"{group['pairs']:>7,}{group['ties']:>6,}{group['margin']:>8.2f}"
        )
    return lines


def learning_curve(results):
    lines = ["", f"{'checkpoint':<70}{'words seen':>16}{'accuracy':>12}"]
    for result in results:
        lines.append(f"{result['checkpoint'][-69:]:<70}{result['words'] or 0:>16,}{percent(result['accuracy']):>12}")
    return lines


def comparison(c):
    """What statistics.compare found, and the ten paradigms that differ most."""
    low, high = c["interval"]
    lines = [
        "",
        f"compared with {c['with']}",
        f"  {100 * c['difference']:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f} "
        f"(paired bootstrap, p = {c['p_bootstrap']:.2g})",
        f"  {c['changed']:,} of {c['pairs']:,} decisions changed: {c['gained']:,} gained, {c['lost']:,} lost "
        f"(McNemar, p = {c['p_mcnemar']:.2g})",
    ]
    largest_first = sorted(c["paradigms"].items(), key=lambda item: -abs(item[1]["difference"]))
    for uid, row in largest_first[:10]:
        if row["gained"] or row["lost"]:
            lines.append(
                f"  {uid[:51]:<52}{100 * row['difference']:+7.1f} {row['gained']:>6} gained {row['lost']:>6} lost"
            )
    return lines


def rule(conventions):
    """What departs from the paper's rule in float32 on all pairs, or `BLiMP`."""
    usual = {"method": "full", "bos": True, "dtype": "float32", "split": "all"}
    departures = []
    for key, value in conventions.items():
        if (value or None) != usual.get(key):
            departures.append(f"{key}={value}")
    return " ".join(departures) or "BLiMP"


def block(result):
    """Warnings, and the `key: value` lines that scripts read."""
    lines = [f"warning: {warning}" for warning in result["warnings"]]
    for key in ("accuracy", "accuracy_ties_half", "accuracy_ties_correct", "accuracy_dev", "accuracy_test"):
        if result[key] is not None:
            lines.append(f"{key}: {result[key]:.6f}")
    if "accuracy_range" in result:
        low, high = result["accuracy_range"]
        lines.append(f"accuracy_range: {low:.6f} to {high:.6f} (a coin decides each tie; accuracy counts it as half)")
    for key in ("pairs", "ties", "nan"):
        lines.append(f"{key}: {result[key]}")
    lines.append(f"paradigms: {len(result['paradigms'])}")
    lines.append(f"incomplete: {str(result['incomplete']).lower()}")
    lines.append(f"rule: {rule(result['conventions'])}")
    lines.append(f"seconds: {result['seconds']:.2f}")
    for key in ("benchmark", "data", "corpus", "checkpoint"):
        lines.append(f"{key}: {result[key]}")
    return "\n".join(lines)


COLUMNS = (
    "uid id phenomenon field split good bad score_good score_bad margin tokens_good tokens_bad right tie "
    "checkpoint rule"
).split()


def pairs_csv(pairs, scores, tokens, correct, checkpoint="", rule=""):
    """A line per pair: what it is, both sentences, both scores in nats (all digits), both lengths in tokens, the
    decision (column `right`); whose, and by which rule. scores, tokens (N, 2), correct (N)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for pair, (good, bad), lengths, decision in zip(pairs, scores.tolist(), tokens.tolist(), correct.tolist()):
        split = "dev" if pair["dev"] else "test"
        writer.writerow(
            [
                pair["uid"],
                pair["id"],
                pair["phenomenon"],
                pair["field"],
                split,
                pair["good"],
                pair["bad"],
                good,
                bad,
                good - bad,
                *lengths,
                int(decision),
                int(good == bad),
                checkpoint,
                rule,
            ]
        )
    return out.getvalue()


def predictions(pairs, correct):
    """The BabyLM challenge's submission, in the order of the files:
    {uid: {"predictions": [{"id": "uid_0", "pred": the chosen sentence}, ...]}}"""
    chosen = {}
    for pair, decision in zip(pairs, correct):
        rows = chosen.setdefault(pair["uid"], {"predictions": []})["predictions"]
        rows.append({"id": f"{pair['uid']}_{len(rows)}", "pred": pair["good"] if decision else pair["bad"]})
    return chosen
