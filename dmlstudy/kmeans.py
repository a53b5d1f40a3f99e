"""k-means: of test embeddings for NMI, of training features for the clusters of a method."""

import faiss
import numpy as np
import torch
from torch import Tensor


def kmeans(features: Tensor, clusters: int, seed: int, restarts: int = 1) -> Tensor:
    """Cluster ids int64 [N] of features [N, D] by Lloyd's k-means (faiss), the best of so many starts."""
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
    return torch.from_numpy(clustering.index.search(x, 1)[1][:, 0])
