"""Numbers about decisions on minimal pairs: accuracies, intervals, and the difference between two models."""

from dataclasses import asdict, dataclass, field
import math

import numpy as np

DRAWS = 10000  # of each bootstrap


@dataclass
class Group:
    """What the scores of one or several paradigms come to: accuracy and its 95 % interval 0..1, margin in nats."""

    accuracy: float
    interval: list[float]
    paradigms: int
    pairs: int
    ties: int
    margin: float
    phenomenon: str | None = None
    field: str | None = None


@dataclass
class Origin:
    """Whose scores, of what, by which rule, on what."""

    checkpoint: str
    method: str  # full: log p of the sentence; or a pseudo-log-likelihood of a masked model
    before_first_token: str
    benchmark: str
    data: str
    conventions: dict
    sha256: dict
    device: str
    torch: str
    scoring_seconds: float
    corpus: str | None = None
    words: int | None = None
    steps: int | None = None
    parameters: int | None = None
    bits_per_byte: float | None = None

    @property
    def label(self):
        """The model's name, marked if its scores are not probabilities of sentences."""
        return self.checkpoint if self.method == "full" else f"{self.checkpoint} [{self.method}]"


@dataclass
class Result:
    """A model's scores of minimal pairs, its decisions, and what they come to. Accuracies are 0..1, margins nats.

    overall.accuracy is the mean over paradigms by the rule asked for. views: the same by other readings (strict,
    ties_half and ties_correct for ties; mean_per_token for scores divided by the length; dev and test for the two parts
    of the pairs; micro for the share of all pairs; phenomena and fields for the means over those), None if there are
    no such pairs.
    """

    pairs: list[dict]
    scores: np.ndarray  # (N, 2) of (good, bad) sentences
    tokens: np.ndarray  # (N, 2): how many are scored
    correct: np.ndarray  # (N), bool
    overall: Group
    views: dict[str, float | None]
    paradigms: dict[str, Group]
    phenomena: dict[str, Group]
    fields: dict[str, Group]
    identical_pairs: int
    nan: int
    hardest: list[dict]
    accuracy_range: list[float] | None = None  # where a coin decides ties
    warnings: list[str] = field(default_factory=list)
    incomplete: bool = False
    origin: Origin | None = None
    comparison: "Comparison | None" = None
    seconds: float | None = None

    def as_json(self):
        """The dictionary that --json writes. Its keys are a contract: scripts depend on them."""
        tree = {"accuracy": self.overall.accuracy, "accuracy_interval": self.overall.interval}
        for name, accuracy in self.views.items():
            tree[f"accuracy_{name}"] = accuracy
        tree |= {"margin": self.overall.margin, "pairs": self.overall.pairs, "ties": self.overall.ties}
        tree |= {"identical_pairs": self.identical_pairs, "nan": self.nan}
        for kind in ("paradigms", "phenomena", "fields"):
            tree[kind] = {name: asdict(group) for name, group in getattr(self, kind).items()}
        tree["hardest"] = self.hardest
        if self.accuracy_range:
            tree["accuracy_range"] = self.accuracy_range
        tree |= {"warnings": self.warnings, "incomplete": self.incomplete}
        if self.origin:
            tree |= asdict(self.origin)
        if self.comparison:
            comparison = asdict(self.comparison)
            tree["comparison"] = {"with": comparison.pop("other"), **comparison}
        return tree | {"seconds": self.seconds}


@dataclass
class Change:
    """Decisions beside those of another model: the difference of the accuracies and its 95 % interval, in shares."""

    difference: float
    interval: list[float]
    gained: int
    lost: int


@dataclass
class Comparison(Change):
    """The difference of the means over paradigms; p_bootstrap is at least 1 / DRAWS."""

    p_bootstrap: float
    p_mcnemar: float
    changed: int
    pairs: int
    paradigms: dict[str, Change]
    other: str = ""  # the model compared with; `with` in the JSON


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


def interval(correct, pairs):
    """95 % interval of the mean over paradigms of the share that is correct: Wilson's of one paradigm, and of several
    the root of the sum of their squared distances (Zou and Donner 2008). correct, pairs: of each paradigm."""
    shares = np.array(correct) / np.array(pairs)
    low, high = np.array([wilson(*counts) for counts in zip(correct, pairs)]).T
    down = np.sqrt(((shares - low) ** 2).sum()) / len(shares)
    up = np.sqrt(((high - shares) ** 2).sum()) / len(shares)
    return [float(shares.mean() - down), float(shares.mean() + up)]


def mcnemar(gained, lost):
    """Two-sided exact p-value of gains and losses being equally likely (McNemar 1947): a binomial test."""
    n = gained + lost

    def probability(k):  # of k gains in n changes
        return math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))

    return min(1.0, 2 * math.fsum(probability(k) for k in range(min(gained, lost) + 1)))


def summarize(pairs, scores, tokens, correct, credit=None):
    """The Result of scores and tokens (N, 2) of (good, bad) sentences and decisions `correct` (N).

    credit: what a decision is worth in the accuracies, 0..1; default: 1 if correct.
    """
    credit = correct if credit is None else credit
    margin = scores[:, 0] - scores[:, 1]
    mean_good, mean_bad = (scores / np.maximum(tokens, 1)).T
    tie = margin == 0
    dev = np.array([pair["dev"] for pair in pairs])
    members = group(pairs, "uid")  # of each paradigm, the indices of its pairs

    def summary(uids):
        return Group(
            accuracy=mean_of_means(credit, [members[uid] for uid in uids]),
            interval=interval([credit[members[uid]].sum() for uid in uids], [len(members[uid]) for uid in uids]),
            paradigms=len(uids),
            pairs=sum(len(members[uid]) for uid in uids),
            ties=sum(int(tie[members[uid]].sum()) for uid in uids),
            margin=mean_of_means(margin, [members[uid] for uid in uids]),
        )

    paradigms = {}
    for uid, m in members.items():
        paradigms[uid] = summary([uid])
        paradigms[uid].phenomenon, paradigms[uid].field = pairs[m[0]]["phenomenon"], pairs[m[0]]["field"]
    phenomena, fields = ({}, {})
    for kind, key in ((phenomena, "phenomenon"), (fields, "field")):
        named = {uid: getattr(paradigm, key) for uid, paradigm in paradigms.items()}
        for name in sorted(set(named.values()) - {None}):
            kind[name] = summary([uid for uid in named if named[uid] == name])
    everything = list(members.values())
    views = {
        "strict": mean_of_means(margin > 0, everything),
        "ties_half": mean_of_means((margin > 0) + tie / 2, everything),
        "ties_correct": mean_of_means(margin >= 0, everything),
        "mean_per_token": mean_of_means(mean_good > mean_bad, everything),
        "dev": mean_of_means(credit, [m[dev[m]] for m in everything]),
        "test": mean_of_means(credit, [m[~dev[m]] for m in everything]),
        "micro": float(credit.mean()),
        "phenomena": float(np.mean([g.accuracy for g in phenomena.values()])) if phenomena else None,
        "fields": float(np.mean([g.accuracy for g in fields.values()])) if fields else None,
    }
    hardest = []
    for i in np.argsort(margin, kind="stable")[:10]:
        pair = {key: pairs[i][key] for key in ("uid", "id", "good", "bad")}
        hardest.append({**pair, "margin": float(margin[i])})
    return Result(
        pairs=pairs,
        scores=scores,
        tokens=tokens,
        correct=correct,
        overall=summary(list(members)),
        views=views,
        paradigms=paradigms,
        phenomena=phenomena,
        fields=fields,
        identical_pairs=sum(pair["good"] == pair["bad"] for pair in pairs),
        nan=int(np.isnan(margin).sum()),
        hardest=hardest,
    )


def mean_of_means(values, members):
    """The mean over paradigms of each one's mean; members: the indices of its pairs. None if all are empty."""
    means = [values[m].mean() for m in members if len(m)]
    return float(np.mean(means)) if means else None


def compare(pairs, correct, other):
    """The Comparison of the decisions (N) of a model with those of another one on the same pairs.

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
        rows[uid] = Change((gained - lost) / n, np.percentile(drawn, [2.5, 97.5]).tolist(), gained, lost)
        drawn_means += drawn / len(paradigms)
    gained = sum(row.gained for row in rows.values())
    lost = sum(row.lost for row in rows.values())
    one_sided = min((drawn_means <= 0).mean(), (drawn_means >= 0).mean())
    return Comparison(
        difference=float(np.mean([row.difference for row in rows.values()])),
        interval=np.percentile(drawn_means, [2.5, 97.5]).tolist(),
        gained=gained,
        lost=lost,
        p_bootstrap=float(min(1, max(2 * one_sided, 1 / DRAWS))),
        p_mcnemar=mcnemar(gained, lost),
        changed=gained + lost,
        pairs=len(pairs),
        paradigms=rows,
    )
