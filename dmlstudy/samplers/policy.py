"""A learned policy that proposes the negative classes of an anchor class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Policy(nn.Module):
    """A network that scores a class c as a negative of an anchor class a, from [e_a; e_c; e_a . e_c].

    Its last layer starts at zero, so that before any reward all classes are proposed alike.
    """

    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * size + 1, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, anchor: Tensor, classes: Tensor) -> Tensor:
        """Scores [C] of class vectors [C, D] beside an anchor class' vector [D]."""
        affinity = classes @ anchor
        given = torch.cat([anchor.expand_as(classes), classes, affinity[:, None]], 1)
        return self.layers(given)[:, 0]


def draw_log_probabilities(logits: Tensor, drawn: Tensor) -> Tensor:
    """log pi of each draw, given those before it, when classes are drawn without replacement, [n].

    Args:
        logits: [C], -inf for a class that cannot be drawn.
        drawn: n different classes, in the order of drawing.

    >>> draw_log_probabilities(torch.zeros(4), torch.tensor([2, 0])).exp()
    tensor([0.2500, 0.3333])
    """
    now = F.one_hot(drawn, len(logits))
    taken = (now.cumsum(0) - now).bool()
    return logits[drawn] - logits.expand(len(drawn), -1).masked_fill(taken, -torch.inf).logsumexp(1)
