"""Numbers about decisions on minimal pairs: accuracies, intervals, and the difference between two models."""

from dataclasses import asdict, dataclass, field, replace
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
    """Where a Result comes from: which model, which pairs, which rule, which machine."""

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

    overall.accuracy is the mean over paradigms by the rule asked for. views: the same read in other ways (strict,
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
    hardest: list[dict]
    accuracy_range: list[float] | None = None  # where a coin decides ties
    warnings: list[str] = field(default_factory=list)
    incomplete: bool = False
    origin: Origin | None = None
    comparison: "Comparison | None" = None
    seconds: float | None = None

    def as_json(self):
        """The dictionary that --json writes. Its keys are a contract: scripts depend on them."""
        tree = asdict(replace(self, pairs=None, scores=None, tokens=None, correct=None))
        overall, views, origin, comparison = (tree.pop(key) for key in ("overall", "views", "origin", "comparison"))
        found = {"accuracy": overall["accuracy"], "accuracy_interval": overall["interval"]}
        found |= {f"accuracy_{view}": accuracy for view, accuracy in views.items()}
        found |= {key: overall[key] for key in ("margin", "pairs", "ties")}
        found |= {key: value for key, value in tree.items() if value is not None}
        found |= origin or {}
        if comparison:
            found["comparison"] = {"with": comparison.pop("other"), **comparison}
        return found


@dataclass
class Change:
    """Decisions compared with those of another model: the difference of the accuracies, 0..1, and its 95 % interval."""

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


def by_paradigm(pairs):
    """{uid: indices of its pairs}, in order of appearance."""
    members = {}
    for i, pair in enumerate(pairs):
        members.setdefault(pair["uid"], []).append(i)
    return {uid: np.array(indices) for uid, indices in members.items()}


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
    tie = margin == 0
    mean_good, mean_bad = (scores / np.maximum(tokens, 1)).T
    dev = np.array([pair["dev"] for pair in pairs])
    members = by_paradigm(pairs)
    everything = list(members.values())

    def summary(uids, **known):
        each = [members[uid] for uid in uids]
        return Group(
            accuracy=mean_of_means(credit, each),
            interval=interval([credit[m].sum() for m in each], [len(m) for m in each]),
            paradigms=len(each),
            pairs=sum(len(m) for m in each),
            ties=sum(int(tie[m].sum()) for m in each),
            margin=mean_of_means(margin, each),
            **known,
        )

    def summaries(key):
        uids = {}
        for uid, m in members.items():
            uids.setdefault(pairs[m[0]][key], []).append(uid)
        return {name: summary(uids[name]) for name in sorted(uids.keys() - {None})}

    paradigms = {}
    for uid, m in members.items():
        paradigms[uid] = summary([uid], **{key: pairs[m[0]][key] for key in ("phenomenon", "field")})
    phenomena, fields = summaries("phenomenon"), summaries("field")
    views = {
        "strict": mean_of_means(margin > 0, everything),
        "ties_half": mean_of_means((margin > 0) + tie / 2, everything),
        "ties_correct": mean_of_means(margin >= 0, everything),
        "mean_per_token": mean_of_means(mean_good > mean_bad, everything),
        "dev": mean_of_means(credit, [m[dev[m]] for m in everything]),
        "test": mean_of_means(credit, [m[~dev[m]] for m in everything]),
        "micro": float(credit.mean()),
        "phenomena": mean([group.accuracy for group in phenomena.values()]),
        "fields": mean([group.accuracy for group in fields.values()]),
    }
    hardest = []
    for i in np.argsort(margin, kind="stable")[:10]:
        hardest.append({key: pairs[i][key] for key in ("uid", "id", "good", "bad")} | {"margin": float(margin[i])})
    return Result(
        pairs=pairs,
        scores=scores,
        tokens=tokens,
        correct=correct,
        overall=summary(members),
        views=views,
        paradigms=paradigms,
        phenomena=phenomena,
        fields=fields,
        identical_pairs=sum(pair["good"] == pair["bad"] for pair in pairs),
        hardest=hardest,
    )


def mean(values):
    return float(np.mean(values)) if values else None


def mean_of_means(values, members):
    """The mean over paradigms of each one's mean; members: the indices of its pairs. None if all are empty."""
    return mean([values[m].mean() for m in members if len(m)])


def compare(pairs, correct, other, name=""):
    """The Comparison of the decisions (N) of a model with those of another one on the same pairs.

    The difference of the means over paradigms, with a paired bootstrap; pairs gained and lost against `other`, in all
    (McNemar's test) and by paradigm.
    """
    rng = np.random.default_rng(0)
    rows, drawn_means = {}, np.zeros(DRAWS)
    paradigms = by_paradigm(pairs)
    for uid, m in paradigms.items():
        n = len(m)
        gained, lost = int((correct[m] & ~other[m]).sum()), int((~correct[m] & other[m]).sum())
        drawn = rng.multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], DRAWS)  # each pair with its outcome
        drawn = (drawn[:, 0] - drawn[:, 1]) / n  # (DRAWS)
        rows[uid] = Change((gained - lost) / n, interval_of(drawn), gained, lost)
        drawn_means += drawn / len(paradigms)
    gained, lost = sum(row.gained for row in rows.values()), sum(row.lost for row in rows.values())
    one_sided = min((drawn_means <= 0).mean(), (drawn_means >= 0).mean())
    return Comparison(
        difference=float(np.mean([row.difference for row in rows.values()])),
        interval=interval_of(drawn_means),
        gained=gained,
        lost=lost,
        p_bootstrap=float(min(1, max(2 * one_sided, 1 / DRAWS))),
        p_mcnemar=mcnemar(gained, lost),
        changed=gained + lost,
        pairs=len(pairs),
        paradigms=rows,
        other=name,
    )


def interval_of(drawn):
    """95 % interval of a bootstrap's draws."""
    return np.percentile(drawn, [2.5, 97.5]).tolist()
