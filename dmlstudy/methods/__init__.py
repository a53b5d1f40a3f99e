"""Methods of the study by name, in the order of the table."""

from __future__ import annotations

from dmlstudy.errors import unknown
from dmlstudy.methods import pairs, proxies
from dmlstudy.methods.base import Batch, EmbedAll, Epoch, Method, TrainingSet, deviations
from dmlstudy.methods.damlrrm import DAMLRRM
from dmlstudy.methods.density_aware import DensityAware
from dmlstudy.methods.discriminative_sampling import DiscriminativeSampling
from dmlstudy.methods.ensembles import DivideAndConquer
from dmlstudy.methods.generators import HDML
from dmlstudy.methods.hyperparameters import Hyperparameter, citation, hyperparameters
from dmlstudy.methods.invariant_spreading import InvariantSpreading
from dmlstudy.methods.product_quantisation import ProductQuantisation
from dmlstudy.methods.sche import SCHE
from dmlstudy.methods.teachers import Teachers
from dmlstudy.methods.untrained import Raw, Untrained

METHODS: dict[str, type[Method]] = {
    "untrained": Untrained,
    "upper_bound": proxies.UpperBound,
    "product_quantisation": ProductQuantisation,
    "ranked_list": pairs.RankedList,
    "density_aware": DensityAware,
    "sche": SCHE,
    "multi_similarity": pairs.MultiSimilarity,
    "fastap": pairs.FastAP,
    "teachers": Teachers,
    "discriminative_sampling": DiscriminativeSampling,
    "divide_and_conquer": DivideAndConquer,
    "invariant_spreading": InvariantSpreading,
    "snr": pairs.SNR,
    "damlrrm": DAMLRRM,
    "hdml": HDML,
    "soft_triple": proxies.SoftTriple,
    "triplet_batch_hard": pairs.TripletBatchHard,
    "contrastive": pairs.Contrastive,
    "raw": Raw,
}

__all__ = [
    "METHODS",
    "Batch",
    "EmbedAll",
    "Epoch",
    "Hyperparameter",
    "Method",
    "TrainingSet",
    "citation",
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
