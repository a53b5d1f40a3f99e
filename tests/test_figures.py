"""Figures show any data: names that look like formulas, one term or several, nothing trained."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from dmlstudy.study import figures

GREY = np.full((4, 4, 1), 128, dtype=np.uint8)


def size(image):
    return Image.open(io.BytesIO(image.data)).size


@pytest.mark.parametrize("name", [r"$\frac$", "$5 and $6", r"a\$b$"])
def test_a_dollar_sign_in_a_name_is_no_formula(name):
    """Unescaped, the first of them raises when the figure is drawn."""
    figures.gallery([(name, GREY, [(GREY, True)])])
    figures.bars([name, "b"], {"count": [1, 2]}, "count")
    text = plt.figure().text(0, 0, figures.plain(name))
    assert not text._preprocess_math(text.get_text())[1]
    plt.close()


def test_curves_have_a_panel_per_term():
    def drawn(*terms):
        rows = [dict.fromkeys(terms, 1.0 / step) for step in (1, 2)]
        return size(figures.training_curves({0: rows, 1: rows}, {"loss": 0.7}))

    assert drawn("loss", "regulariser")[0] == pytest.approx(2 * drawn("loss")[0], rel=0.05)
    assert size(figures.training_curves({0: []}))[1] < drawn("loss")[1]


def test_curves_show_where_a_full_collapse_lies(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "picture", drawn.append)
    rows = [{"loss": 1.0, "memory": 1.0}, {"loss": 0.9}]  # a term that not every step has
    figures.training_curves({0: rows}, {"loss": 0.693})
    marked = {
        axis.get_title(): [
            line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"
        ]
        for axis in drawn[0].axes
    }
    assert marked == {"loss": [0.693], "memory": []}
    plt.close(drawn[0])


def test_forces_of_a_loss_without_a_gradient_are_drawn():
    assert size(figures.forces(lambda x, y: 0 * x.sum(), torch.zeros(3, 2, 2)))


def test_histograms_have_a_panel_each():
    edges, counts = torch.linspace(-1, 1, 5), torch.tensor([1, 2, 3, 4])
    one = (edges, counts, torch.zeros(4))
    assert size(figures.similarity_histograms({"a": one, "b": one}))[0] == pytest.approx(
        2 * size(figures.similarity_histograms({"a": one}))[0], rel=0.05
    )
