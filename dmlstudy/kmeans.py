"""k-means: of test embeddings for NMI, of training features for the clusters of a method."""

import faiss
import numpy as np
import torch
from torch import Tensor


def kmeans(features: Tensor, clusters: int, seed: int, restarts: int = 1) -> Tensor:
    """Cluster ids int64 [N] of features [N, D] by Lloyd's k-means (faiss), the best of so many starts."""
    clustering, x = _trained(features, clusters, seed, restarts)
    return torch.from_numpy(clustering.index.search(x, 1)[1][:, 0])


def centroids(features: Tensor, clusters: int, seed: int = 0) -> Tensor:
    """Where k-means of features [N, D] ends, [clusters, D]; of fewer rows than clusters, the rows, repeated."""
    if len(features) <= clusters:
        return features[torch.arange(clusters) % len(features)]
    clustering, _ = _trained(features, clusters, seed, 1)
    return torch.from_numpy(clustering.centroids)


def _trained(
    features: Tensor, clusters: int, seed: int, restarts: int
) -> tuple[faiss.Kmeans, np.ndarray]:
    x = np.ascontiguousarray(features.detach().float().numpy())
    clustering = faiss.Kmeans(
        x.shape[1],
        clusters,
        niter=20,
        nredo=restarts,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(x),
    )
    clustering.train(x)
    return clustering, x
