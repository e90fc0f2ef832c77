"""Pictures: what stands on their axes."""

import io

from lab.report import plots
from lab.run.progress import COLUMNS

from matplotlib.figure import Figure
import pytest


@pytest.fixture
def figures(monkeypatch):
    """All figures that are saved, with their axes."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    return saved


def lines_of(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_curves_of_a_run(figures):
    """Losses on the left axis; on the right one, where pairs were scored, their accuracy in %; both in one legend."""
    rows = [
        dict.fromkeys(COLUMNS, "") | {"tokens": tokens, "train_loss": 5 - tokens / 100} for tokens in (100, 200, 300)
    ]
    rows[0] |= {"val_loss": 4.5}
    plots.draw_curves(rows, "quick on a text", io.BytesIO())
    rows[0] |= {"blimp": 0.5}
    rows[2] |= {"val_loss": 2.5, "blimp": 0.75}
    plots.draw_curves(rows, "quick on a text", io.BytesIO())
    (alone,), (left, right) = figures[0].axes, figures[1].axes
    losses = {"train loss": [[100, 4], [200, 3], [300, 2]], "val loss": [[100, 4.5]]}
    assert lines_of(alone) == losses
    assert lines_of(left) == losses | {"val loss": [[100, 4.5], [300, 2.5]]}
    assert lines_of(right) == {"minimal pairs, %": [[100, 50], [300, 75]]}
    assert left.get_title() == "quick on a text" and left.get_xlabel() == "tokens"
    assert left.get_ylabel() == "loss, nats per token" and "accuracy" in right.get_ylabel()
    (legend,) = figures[1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["train loss", "val loss", "minimal pairs, %"]
