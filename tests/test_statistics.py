"""Intervals, tests and accuracies against values worked out by hand."""

from lab.score import statistics

import numpy as np
import pytest


def test_wilson():
    assert statistics.wilson(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert statistics.wilson(0, 10) == pytest.approx([0, 0.2775], abs=1e-4)
    assert statistics.wilson(10, 10) == pytest.approx([0.7225, 1], abs=1e-4)


def test_bootstrap_is_that_of_the_pairs():
    rng, outcomes = np.random.default_rng(1), [np.arange(40) < 30, np.arange(25) < 5]
    means = [np.mean([rng.choice(o, len(o)).mean() for o in outcomes]) for _ in range(4000)]
    assert statistics.bootstrap([30, 5], [40, 25]) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.012)
    assert statistics.bootstrap([7, 0], [7, 3]) == [0.5, 0.5]


def test_mcnemar():
    assert statistics.mcnemar(10, 2) == statistics.mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert statistics.mcnemar(0, 0) == statistics.mcnemar(3, 3) == 1
    assert 0 <= statistics.mcnemar(20000, 10000) < 1e-300


def test_compare():
    pairs = [{"uid": u} for u in "xxxxyy"]
    c = statistics.compare(pairs, np.array([1, 1, 1, 0, 1, 0], bool), np.array([1, 0, 0, 1, 1, 0], bool))
    # 4 draws of +1, +1, -1, 0: P(sum <= -3) = 1.7 %, P(sum <= -2) = 4.3 %; P(sum = 4) = 6.3 %
    assert c["paradigms"]["x"] == {"difference": 0.25, "interval": [-0.5, 1], "gained": 2, "lost": 1}
    assert c["paradigms"]["y"] == {"difference": 0.0, "interval": [0, 0], "gained": 0, "lost": 0}
    assert (c["difference"], c["gained"], c["lost"], c["changed"], c["pairs"]) == (0.125, 2, 1, 3, 6)
    assert c["interval"][0] < 0 < c["interval"][1]
    same = statistics.compare(pairs, np.ones(6, bool), np.ones(6, bool))
    assert same["interval"] == [0, 0] and same["p_bootstrap"] == same["p_mcnemar"] == 1
    many = [{"uid": "x"}] * 1000
    assert statistics.compare(many, np.arange(1000) < 700, np.arange(1000) < 600)["p_bootstrap"] < 0.01
