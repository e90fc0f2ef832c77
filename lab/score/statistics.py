"""Numbers about decisions on minimal pairs: accuracies, intervals, and the difference between two models."""

import math

import numpy as np

DRAWS = 10000  # of each bootstrap


def group(pairs, key):
    """{value: indices of the pairs that have it}, in order of appearance; pairs without one are left out."""
    groups = {}
    for i, pair in enumerate(pairs):
        if pair[key] is not None:
            groups.setdefault(pair[key], []).append(i)
    return {name: np.array(members) for name, members in groups.items()}


def wilson(correct, n, z=1.959964):
    """95 % interval of a share, correct of n (Wilson 1927): inside [0, 1], and not empty at 0 or 1."""
    p, zz = correct / n, z * z / n
    middle = (p + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(p * (1 - p) / n + zz / n / 4)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def bootstrap(correct, pairs):
    """95 % interval of the mean over paradigms, the pairs of each drawn again with replacement.

    correct, pairs: of each paradigm. The share that is correct among n draws is Binomial(n, correct / n) / n.
    """
    correct, pairs = np.array(correct), np.array(pairs)
    rng = np.random.default_rng(0)
    shares = rng.binomial(pairs, correct / pairs, (DRAWS, len(pairs))) / pairs
    return np.percentile(shares.mean(1), [2.5, 97.5]).tolist()


def mcnemar(gained, lost):
    """Two-sided exact p-value of gains and losses being equally likely (McNemar 1947): a binomial test."""
    n = gained + lost

    def probability(k):  # of k gains in n changes
        return math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))

    return min(1.0, 2 * math.fsum(probability(k) for k in range(min(gained, lost) + 1)))


def summarize(pairs, scores, correct):
    """All numbers about scores (N, 2) of (good, bad) sentences and decisions (N). Accuracies are 0..1, margins nats.

    correct: False or True, or where half a point is given, 0, 0.5 or 1.

    `accuracy` is the mean over paradigms of `correct`; accuracy_strict, _ties_half and _ties_correct are that for each
    view of ties, _dev and _test for the two parts of the pairs, _phenomena and _fields the means over those, _micro the
    share of all pairs.
    """
    margin = scores[:, 0] - scores[:, 1]
    tie = margin == 0
    dev = np.array([pair["dev"] for pair in pairs])
    paradigms = group(pairs, "uid")

    def summary(members):
        """Of the paradigms whose pairs have these indices."""
        return {
            "accuracy": mean_of_means(correct, members),
            "interval": bootstrap([correct[m].sum() for m in members], [len(m) for m in members]),
            "paradigms": len(members),
            "pairs": sum(len(m) for m in members),
            "ties": sum(int(tie[m].sum()) for m in members),
            "margin": mean_of_means(margin, members),
        }

    members = list(paradigms.values())
    total = summary(members)
    result = {
        "accuracy": total["accuracy"],
        "accuracy_interval": total["interval"],
        "accuracy_strict": mean_of_means(margin > 0, members),
        "accuracy_ties_half": mean_of_means((margin > 0) + tie / 2, members),
        "accuracy_ties_correct": mean_of_means(margin >= 0, members),
        "accuracy_dev": mean_of_means(correct, [m[dev[m]] for m in members]),
        "accuracy_test": mean_of_means(correct, [m[~dev[m]] for m in members]),
        "accuracy_micro": float(correct.mean()),
        "margin": total["margin"],
        "pairs": len(pairs),
        "ties": int(tie.sum()),
        "identical_pairs": sum(pair["good"] == pair["bad"] for pair in pairs),
        "nan": int(np.isnan(margin).sum()),
        "paradigms": {},
    }
    for uid, m in paradigms.items():
        first = pairs[m[0]]
        result["paradigms"][uid] = {
            **summary([m]),
            "interval": wilson(float(correct[m].sum()), len(m)),
            "phenomenon": first["phenomenon"],
            "field": first["field"],
        }
    for plural, key in (("phenomena", "phenomenon"), ("fields", "field")):
        groups = {}
        for m in members:
            groups.setdefault(pairs[m[0]][key], []).append(m)
        groups.pop(None, None)
        result[plural] = {name: summary(groups[name]) for name in sorted(groups)}
        accuracies = [g["accuracy"] for g in result[plural].values()]
        result[f"accuracy_{plural}"] = float(np.mean(accuracies)) if accuracies else None
    result["hardest"] = []
    for i in np.argsort(margin, kind="stable")[:10]:
        pair = pairs[i]
        result["hardest"].append(
            {"uid": pair["uid"], "id": pair["id"], "margin": float(margin[i]), "good": pair["good"], "bad": pair["bad"]}
        )
    return result


def mean_of_means(values, members):
    """The mean over paradigms of each one's mean; members: the indices of its pairs. None if all are empty."""
    means = [values[m].mean() for m in members if len(m)]
    return float(np.mean(means)) if means else None


def compare(pairs, correct, other):
    """The decisions (N) of an evaluation beside those of another one of the same pairs.

    The difference of the means over paradigms, with a paired bootstrap; pairs gained and lost against `other`, in all
    (McNemar's test) and by paradigm.
    """
    rng = np.random.default_rng(0)
    rows, drawn_means = {}, np.zeros(DRAWS)
    paradigms = group(pairs, "uid")
    for uid, m in paradigms.items():
        n = len(m)
        gained = int((correct[m] & ~other[m]).sum())
        lost = int((~correct[m] & other[m]).sum())
        shares = [gained / n, lost / n, (n - gained - lost) / n]
        drawn = rng.multinomial(n, shares, DRAWS)  # (DRAWS, 3): a pair is drawn with both outcomes
        drawn = (drawn[:, 0] - drawn[:, 1]) / n  # (DRAWS)
        rows[uid] = {
            "difference": (gained - lost) / n,
            "interval": np.percentile(drawn, [2.5, 97.5]).tolist(),
            "gained": gained,
            "lost": lost,
        }
        drawn_means += drawn / len(paradigms)
    gained = sum(row["gained"] for row in rows.values())
    lost = sum(row["lost"] for row in rows.values())
    one_sided = min((drawn_means <= 0).mean(), (drawn_means >= 0).mean())
    return {
        "difference": float(np.mean([row["difference"] for row in rows.values()])),
        "interval": np.percentile(drawn_means, [2.5, 97.5]).tolist(),
        "p_bootstrap": float(min(1, 2 * one_sided)),
        "p_mcnemar": mcnemar(gained, lost),
        "changed": gained + lost,
        "gained": gained,
        "lost": lost,
        "pairs": len(pairs),
        "paradigms": rows,
    }
