"""Methods of the study, one file per paper; the name is the file's."""

from __future__ import annotations

import inspect

from dmlstudy.errors import unknown
from dmlstudy.methods.base import Batch, Method, Task, deviations
from dmlstudy.methods.divide_and_conquer import DivideAndConquer
from dmlstudy.methods.multi_similarity import MultiSimilarity
from dmlstudy.methods.ranked_list import RankedList
from dmlstudy.methods.soft_triple import SoftTriple
from dmlstudy.methods.triplet_batch_hard import TripletBatchHard
from dmlstudy.methods.untrained import Untrained

METHODS: dict[str, type[Method]] = {
    "untrained": Untrained,
    "triplet_batch_hard": TripletBatchHard,
    "soft_triple": SoftTriple,
    "ranked_list": RankedList,
    "multi_similarity": MultiSimilarity,
    "divide_and_conquer": DivideAndConquer,
}

__all__ = ["METHODS", "Batch", "Method", "Task", "deviations", "find_method", "hyperparameters"]


def find_method(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        StudyError: no such method; the nearest name is suggested.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def hyperparameters(method: type[Method]) -> dict[str, inspect.Parameter]:
    """A method's hyperparameters: the keyword-only arguments of its constructor."""
    signature = inspect.signature(method.__init__, eval_str=True)
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
