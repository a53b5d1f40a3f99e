"""Methods of the study, one file per paper; the name is the file's."""

from __future__ import annotations

import inspect

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
