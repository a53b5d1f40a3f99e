"""DAMLRRM: only the edges of a spanning tree of each class count as positive pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.geometry import pair_masks, pairwise_distance
from dmlstudy.ranges import NonNegative, Positive


def tree_pairs(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: NonNegative = 0.2,
    scale: Positive = 20.0,
    edges: Tensor | None = None,
) -> Tensor:
    """Each class is held together along its minimum spanning tree, so it must be connected but not compact.

    Xu, Yang, Deng, Zheng, "Deep Asymmetric Metric Learning via Rich Relationship Mining", CVPR 2019. With d the
    Euclidean distance, T the edges of all classes' trees, each taken in both directions, N_i the negatives of i:

        L = 1 / (2 |T| s) sum_{(i, j) in T} log(1 + sum_{n in N_i} exp(s (d_ij - d_in + m)))

    The tree is the paper's; the loss on its edges is a reconstruction. With s = 1 all negatives of unit embeddings
    weigh nearly the same, as their distances differ by less than 2; the larger s, the more the nearest ones count.

    Args:
        embeddings: [B, D], expects unit rows.
        labels: [B].
        margin: m.
        scale: s.
        edges: symmetric, boolean [B, B]; minimum spanning trees of d when left out.

    Returns:
        Scalar. A batch of one class, or without edges, gives 0 with zero gradient.

    >>> x = torch.tensor([[1, 0], [.8, .6], [0, 1], [-.6, .8]])
    >>> easy, hard = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> [round(float(tree_pairs(x, y, margin=0.0, scale=1.0)), 6) for y in (easy, hard)]
    [0.686474, 1.468232]
    """
    d = pairwise_distance(embeddings)
    _, negative = pair_masks(labels)
    if edges is None:
        edges = minimum_spanning_trees(d.detach(), labels)
    if not (edges.any() and negative.any()):
        return embeddings.sum() * 0
    i, j = edges.nonzero(as_tuple=True)
    nearness = (-scale * d).masked_fill(~negative, -torch.inf).logsumexp(1)
    return F.softplus(scale * (d[i, j] + margin) + nearness[i]).mean() / scale


def minimum_spanning_trees(costs: Tensor, labels: Tensor) -> Tensor:
    """A minimum spanning tree of each class, n_c - 1 edges each, symmetric, boolean [B, B].

    Args:
        costs: of the edges, symmetric, at least 0, [B, B]; only those inside classes are looked at.
        labels: [B].

    >>> x = torch.tensor([[0.], [1.], [3.]])
    >>> minimum_spanning_trees((x - x.T).abs(), torch.zeros(3)).int().tolist()
    [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    positive, _ = pair_masks(labels)
    i, j = positive.triu().nonzero(as_tuple=True)
    # scipy takes an edge of cost 0, that of two coinciding images, for an absent one.
    weights = costs[i, j].double().cpu().numpy() + 1e-12
    graph = coo_array((weights, (i.cpu().numpy(), j.cpu().numpy())), shape=costs.shape)
    i, j = (
        torch.from_numpy(ends).long() for ends in minimum_spanning_tree(graph.tocsr()).nonzero()
    )
    edges = torch.zeros(costs.shape, dtype=torch.bool)
    edges[i, j] = edges[j, i] = True
    return edges.to(costs.device)
