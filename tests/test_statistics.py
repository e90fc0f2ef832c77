"""Intervals, tests and accuracies against values worked out by hand."""

from lab.report import tables
from lab.score import statistics

import numpy as np
import pytest


def test_wilson():
    assert statistics.wilson(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert statistics.wilson(0, 10) == pytest.approx([0, 0.2775], abs=1e-4)
    assert statistics.wilson(10, 10) == pytest.approx([0.7225, 1], abs=1e-4)


def test_the_interval_of_a_mean_is_that_of_pairs_drawn_again():
    rng, outcomes = np.random.default_rng(1), [np.arange(400) < 300, np.arange(250) < 50]
    means = [np.mean([rng.choice(o, len(o)).mean() for o in outcomes]) for _ in range(4000)]
    assert statistics.interval([300, 50], [400, 250]) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.003)


def test_one_paradigm_has_one_interval():
    """In its own row, in that of its phenomenon and in that of the mean; and it is never empty."""
    assert statistics.interval([1], [1]) == pytest.approx(statistics.wilson(1, 1))
    low, high = statistics.interval([7, 0], [7, 3])
    assert 0 < low < 0.5 < high < 1


def test_mcnemar():
    assert statistics.mcnemar(10, 2) == statistics.mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert statistics.mcnemar(0, 0) == statistics.mcnemar(3, 3) == 1
    assert 0 <= statistics.mcnemar(20000, 10000) < 1e-300


def test_compare():
    pairs = [{"uid": u} for u in "xxxxyy"]
    c = statistics.compare(pairs, np.array([1, 1, 1, 0, 1, 0], bool), np.array([1, 0, 0, 1, 1, 0], bool))
    # 4 draws of +1, +1, -1, 0: P(sum <= -3) = 1.7 %, P(sum <= -2) = 4.3 %; P(sum = 4) = 6.3 %
    assert c.paradigms["x"] == statistics.Change(difference=0.25, interval=[-0.5, 1], gained=2, lost=1)
    assert c.paradigms["y"] == statistics.Change(difference=0, interval=[0, 0], gained=0, lost=0)
    assert c.difference == 0.125 and c.gained == 2 and c.lost == 1 and c.changed == 3 and c.pairs == 6
    assert c.interval[0] < 0 < c.interval[1]
    same = statistics.compare(pairs, np.ones(6, bool), np.ones(6, bool))
    assert same.interval == [0, 0] and same.p_bootstrap == same.p_mcnemar == 1


def test_no_p_is_zero():
    many = [{"uid": "x"}] * 1000
    c = statistics.compare(many, np.arange(1000) < 900, np.arange(1000) < 100)
    assert c.p_bootstrap == 1 / statistics.DRAWS and "p < 0.0001" in "\n".join(tables.comparison(c, "b"))
