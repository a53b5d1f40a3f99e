"""Samplers: which images meet in a batch."""

from dmlstudy.samplers.clusters import cluster_batches, match_clusters
from dmlstudy.samplers.confusable import confusable_batches
from dmlstudy.samplers.instances import instance_batches
from dmlstudy.samplers.pk import images_by_class, pk_batches
from dmlstudy.samplers.policy import Policy, draw_log_probabilities
from dmlstudy.samplers.two_streams import TwoStreams, two_streams

__all__ = [
    "Policy",
    "TwoStreams",
    "cluster_batches",
    "confusable_batches",
    "draw_log_probabilities",
    "images_by_class",
    "instance_batches",
    "match_clusters",
    "pk_batches",
    "two_streams",
]
