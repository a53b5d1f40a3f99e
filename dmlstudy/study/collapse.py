"""Whether training drew the embeddings together: the one rule, and the words that reports have for it."""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan
from typing import Literal

from dmlstudy.study.tables import Note

State = Literal["no", "partly", "yes"]
STATES: tuple[State, ...] = ("no", "partly", "yes")
MARKS = {"no": "", "partly": " †", "yes": " ‡"}
WORDS = {"partly": ("partly collapsed", "部分坍缩"), "yes": ("collapsed", "坍缩")}
COLLAPSED, PARTLY, VANISHED, TOLERANCE = 0.3, 0.5, 0.05, 0.05
RULE = Note(
    "‡ collapsed: the loss ends no lower than if all embeddings were one point (first term, last tenth of the "
    "steps, to 5 %; equal to it where a point costs nothing), and the relative spread of the test embeddings is "
    f"under {COLLAPSED}. † partly collapsed: the same with a spread under {PARTLY}, or any loss with a spread "
    f"under {VANISHED}.",
    "‡ 坍缩：训练结束时的损失不低于全部嵌入重合为一点时的值（取第一项、最后十分之一的训练步，容差 5%；"
    f"若重合时损失为零，则与之相等），且测试嵌入的相对离散度小于 {COLLAPSED}。"
    f"† 部分坍缩：离散度小于 {PARTLY} 而损失如上，或离散度小于 {VANISHED}（不论损失）。",
)


def state(spread: float, loss: float, at_a_point: float) -> State:
    """`RULE` for one run.

    The spread alone would not do: a random ConvNet begins at 0.07 to 0.1. Nor would the loss: the mean over a mined
    hinge's positive terms stays near the margin, and a loss of long embeddings far above, while the embedding learns.

    Args:
        spread: `relative_spread` of the test embeddings.
        loss: first term, mean over the last tenth of the steps; NaN where nothing was trained.
        at_a_point: the same if all embeddings were equal.
    """
    if isnan(loss):
        return "no"
    as_a_point = loss > at_a_point > 0 or abs(loss - at_a_point) <= TOLERANCE * abs(at_a_point)
    if as_a_point and spread < COLLAPSED:
        return "yes"
    return "partly" if spread < (PARTLY if as_a_point else VANISHED) else "no"


def worst(states: Iterable[State]) -> State:
    """Of several seeds; "no" of none, as in records older than the rule."""
    return max(states, key=STATES.index, default="no")


def rule_note(texts: Iterable[str]) -> list[Note]:
    """The rule, beneath a table some of whose texts bear a mark."""
    return [RULE] if any(text.endswith(("†", "‡")) for text in texts) else []


def in_words(found: State) -> str:
    """For terminals.

    >>> in_words("partly"), in_words("no")
    ('partly collapsed', 'not collapsed')
    """
    return WORDS[found][0] if found in WORDS else "not collapsed"
