"""Whether training drew the embeddings together: the one rule, and the words that reports have for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from dmlstudy.study.tables import Note

State = Literal["no", "partly", "yes"]
STATES: tuple[State, ...] = ("no", "partly", "yes")
MARKS = {"no": "", "partly": " †", "yes": " ‡"}
WORDS = {"partly": ("partly collapsed", "部分坍缩"), "yes": ("collapsed", "坍缩")}
COLLAPSED, PARTLY, TOLERANCE = 0.3, 0.7, 0.05
RULE = Note(
    f"Collapsed: the relative spread of the test embeddings is under {COLLAPSED} (‡; †, partly: under {PARTLY}) "
    "and the loss of the last epoch is no lower than if all embeddings were one point (its first term, to 5 %; equal "
    "to that where a point costs nothing).",
    f"坍缩：测试嵌入的相对离散度小于 {COLLAPSED}（‡；† 部分坍缩：小于 {PARTLY}），"
    "且最后一轮的损失不低于全部嵌入重合为一点时的值（取第一项，容差 5%；若重合时损失为零，则与之相等）。",
    "† ‡",
)


def state(spread: float, loss: float, at_a_point: float) -> State:
    """`RULE` for one run.

    The spread alone would not do: a random ConvNet begins at 0.1. Nor would the loss: the mean over a mined hinge's
    positive terms lies near the margin while the embedding learns.

    Args:
        spread: `relative_spread` of the test embeddings.
        loss: first term, mean over the last epoch; NaN where nothing was trained.
        at_a_point: the same if all embeddings were equal.
    """
    as_a_point = loss > at_a_point > 0 or abs(loss - at_a_point) <= TOLERANCE * abs(at_a_point)
    if not as_a_point or spread >= PARTLY:
        return "no"
    return "yes" if spread < COLLAPSED else "partly"


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
