"""Methods of the study, one file per paper; the name is the file's."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from dmlstudy.errors import unknown
from dmlstudy.methods.base import Batch, Method, Task, deviations
from dmlstudy.methods.damlrrm import DAMLRRM
from dmlstudy.methods.density_aware import DensityAware
from dmlstudy.methods.discriminative_sampling import DiscriminativeSampling
from dmlstudy.methods.divide_and_conquer import DivideAndConquer
from dmlstudy.methods.fastap import FastAP
from dmlstudy.methods.hdml import HDML
from dmlstudy.methods.invariant_spreading import InvariantSpreading
from dmlstudy.methods.multi_similarity import MultiSimilarity
from dmlstudy.methods.product_quantisation import ProductQuantisation
from dmlstudy.methods.ranked_list import RankedList
from dmlstudy.methods.sche import SCHE
from dmlstudy.methods.snr import SNR
from dmlstudy.methods.soft_triple import SoftTriple
from dmlstudy.methods.teachers import Teachers
from dmlstudy.methods.triplet_batch_hard import TripletBatchHard
from dmlstudy.methods.untrained import Untrained
from dmlstudy.methods.upper_bound import UpperBound

METHODS: dict[str, type[Method]] = {
    "untrained": Untrained,
    "upper_bound": UpperBound,
    "product_quantisation": ProductQuantisation,
    "ranked_list": RankedList,
    "density_aware": DensityAware,
    "sche": SCHE,
    "multi_similarity": MultiSimilarity,
    "fastap": FastAP,
    "teachers": Teachers,
    "discriminative_sampling": DiscriminativeSampling,
    "divide_and_conquer": DivideAndConquer,
    "invariant_spreading": InvariantSpreading,
    "snr": SNR,
    "damlrrm": DAMLRRM,
    "hdml": HDML,
    "soft_triple": SoftTriple,
    "triplet_batch_hard": TripletBatchHard,
}

__all__ = [
    "METHODS",
    "Batch",
    "Hyperparameter",
    "Method",
    "Task",
    "deviations",
    "find_method",
    "hyperparameters",
]


def find_method(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        StudyError: no such method; the nearest name is suggested.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


@dataclass(frozen=True)
class Hyperparameter:
    """What a method may be given by name.

    Attributes:
        annotation: its type, with its range if it has one.
        default: of the signature it stands in.
        comment: its line in that signature's docstring.
    """

    annotation: Any
    default: Any
    comment: str


def hyperparameters(method: type[Method]) -> dict[str, Hyperparameter]:
    """A method's hyperparameters by name, read off signatures and docstrings."""
    signature = inspect.signature(method.__init__, eval_str=True)
    comments = argument_comments(method.__doc__ or "")
    return {
        name: Hyperparameter(parameter.annotation, parameter.default, comments[name])
        for name, parameter in signature.parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def argument_comments(doc: str) -> dict[str, str]:
    """First lines of the "Args:" section of a docstring, by argument."""
    found = {}
    for line in doc.partition("Args:\n")[2].splitlines():
        name, colon, text = line.strip().partition(": ")
        if colon and name.isidentifier():
            found[name] = text.rstrip(".").replace(chr(34), "")  # papermill trips over quotes
    return found
