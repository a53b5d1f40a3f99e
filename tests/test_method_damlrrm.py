"""DAMLRRM: trees against Kruskal and scipy, the loss against loops, and two streams whose images all meet."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmlstudy.data import pk_batches
from dmlstudy.errors import StudyError
from dmlstudy.geometry import pair_masks, pairwise_distance
from dmlstudy.losses.damlrrm import minimum_spanning_trees, tree_pairs
from dmlstudy.methods.base import Batch, Task
from dmlstudy.methods.damlrrm import DAMLRRM, two_streams
from dmlstudy.networks import build_network
from dmlstudy.training import Recipe

# Ragged classes, two of them singletons; some of the ten are absent.
LABELS = torch.tensor([0] * 7 + [2] * 5 + [3] * 4 + [5] * 2 + [8, 9])


def batch(seed, labels=LABELS):
    """Embeddings of varied length and shuffled labels."""
    g = torch.Generator().manual_seed(seed)
    y = labels[torch.randperm(len(labels), generator=g)]
    x = torch.randn(len(y), 3, generator=g, dtype=torch.float64)
    return x.requires_grad_(), y


def kruskal(d, members):
    """Edges of a minimum spanning tree of some images, by hand."""
    tree_of, found = {i: i for i in members}, []
    for i, j in sorted(itertools.combinations(members, 2), key=lambda pair: float(d[pair])):
        if tree_of[i] != tree_of[j]:
            found.append((i, j))
            old = tree_of[j]
            tree_of = {m: tree_of[i] if t == old else t for m, t in tree_of.items()}
    return found


def assert_trees(edges, y):
    """Symmetric, inside classes, n_c - 1 edges each, and connected."""
    assert torch.equal(edges, edges.T) and not edges.diagonal().any()
    assert not (edges & (y[:, None] != y)).any()
    for c in y.unique():
        inside = edges[y == c][:, y == c]
        assert inside.sum() == 2 * (len(inside) - 1)
        reached = torch.linalg.matrix_power(inside.double() + torch.eye(len(inside)), len(inside))
        assert (reached > 0).all()


# --- trees


def test_three_points_of_the_card():
    x = torch.tensor([[0.0], [1], [3]])
    edges = minimum_spanning_trees(pairwise_distance(x), torch.zeros(3))
    assert edges.triu().nonzero().tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("seed", range(4))
def test_trees_equal_kruskals_and_have_scipys_weight(seed):
    from scipy.sparse.csgraph import minimum_spanning_tree

    x, y = batch(seed)
    d = pairwise_distance(x.detach())
    edges = minimum_spanning_trees(d, y)
    assert_trees(edges, y)
    for c in y.unique():
        members = (y == c).nonzero()[:, 0].tolist()
        mine = edges.triu()[members][:, members].nonzero().tolist()
        assert sorted((members[i], members[j]) for i, j in mine) == sorted(kruskal(d, members))
        block = d[members][:, members]
        weight = minimum_spanning_tree(block.numpy()).sum()
        assert block[edges[members][:, members]].sum().item() / 2 == pytest.approx(weight)


@pytest.mark.parametrize("d", [0.0, 1.0], ids=["coinciding", "equidistant"])
def test_ties_still_give_trees(d):
    costs = torch.full((len(LABELS), len(LABELS)), d)
    assert_trees(minimum_spanning_trees(costs, LABELS), LABELS)


def test_two_coinciding_images_are_joined_first():
    x = torch.tensor([[2.0], [0], [2], [1.9]])
    edges = minimum_spanning_trees(pairwise_distance(x), torch.zeros(4))
    assert edges[0, 2] and edges[1, 3] and edges.sum() == 6


# --- the loss


def test_the_pair_that_is_no_edge_passes_no_gradient():
    """Points 0, 1, 3: what the first feels does not depend on where the last is, unless all pairs count."""
    y = torch.tensor([4, 4, 4, 6])

    def pull_on_first(last, edges):
        x = torch.tensor([[0.0, 0], [1, 0], [last, 0], [0, 9]]).double().requires_grad_()
        edges = pair_masks(y)[0] if edges == "all" else None
        return torch.autograd.grad(tree_pairs(x, y, scale=1.0, edges=edges), x)[0][0]

    assert pull_on_first(3, "tree").any()
    assert torch.equal(pull_on_first(3, "tree"), pull_on_first(3.5, "tree"))
    assert not torch.allclose(pull_on_first(3, "all"), pull_on_first(3.5, "all"), rtol=1e-3)


def test_of_two_images_per_class_the_tree_is_all_pairs():
    x, y = batch(0, torch.arange(5).repeat_interleave(2))
    assert tree_pairs(x, y) == tree_pairs(x, y, edges=pair_masks(y)[0])


def test_a_collapsed_batch_is_finite():
    x = torch.ones(8, 3, requires_grad=True)
    value = tree_pairs(x, torch.arange(8) // 4, margin=0.0, scale=1.0)
    assert value.item() == pytest.approx(np.log(5))
    assert torch.autograd.grad(value, x)[0].isfinite().all()


# --- two streams


@pytest.mark.parametrize(("n", "k"), [(8, 4), (9, 4), (12, 5), (30, 8), (6, 4), (7, 2), (4, 4)])
def test_all_pairs_of_a_class_meet(n, k):
    ring, met = np.random.default_rng(0).permutation(n), set()
    for meeting in range(n * n):
        group = two_streams(ring, k, meeting)
        assert len(set(group)) == k  # no image meets itself
        met |= {frozenset(pair) for pair in itertools.combinations(group.tolist(), 2)}
    assert len(met) == n * (n - 1) // 2


def test_no_meeting_repeats_before_the_product_of_the_periods():
    ring = np.arange(
        9
    )  # nine places of the first stream, five of the second: 1 to 5 ahead, co-prime to 9
    groups = [tuple(two_streams(ring, 4, meeting)) for meeting in range(90)]
    assert len(set(groups[:45])) == 45 and groups[:45] == groups[45:]
    first = [group[:2] for group in groups]
    assert first[:9] == first[9:18] and len(set(first)) == 9


@pytest.mark.parametrize(("n", "k"), [(1, 2), (2, 4), (3, 4), (3, 8)])
def test_small_classes_are_filled_up(n, k):
    for meeting in range(5):
        group = two_streams(np.arange(n), k, meeting)
        assert len(group) == k and set(group) <= set(range(n))


# --- the method


def build(seed=0, **hyper):
    torch.manual_seed(seed)
    return DAMLRRM(build_network("convnet", channels=1, embedding_size=8), Task(6, 48, 5), **hyper)


def whole(inputs):
    index = torch.arange(48)
    return Batch(inputs.plain(index), torch.from_numpy(inputs.images.labels), index)


def planned(method, labels, epoch=0):
    plan = method.plan(epoch, labels, 4, 4, np.random.default_rng([0, epoch]), None)
    return np.array([indices for indices, _ in plan])


def test_streams_keep_the_protocols_classes_and_steps(inputs):
    labels, method = inputs.images.labels, build()
    protocol = np.array(list(pk_batches(labels, 4, 4, np.random.default_rng([0, 0]))))
    streams = planned(method, labels)
    assert np.array_equal(labels[streams], labels[protocol])
    assert not np.array_equal(streams, protocol)
    assert all(len(set(indices)) == 16 for indices in streams)
    assert method.meetings.tolist() == np.bincount(labels[protocol[:, ::4]].ravel()).tolist()
    assert np.array_equal(planned(build(second_stream=False), labels), protocol)


def test_streams_go_on_over_epochs_until_all_pairs_have_met(inputs):
    labels, method, met = inputs.images.labels, build(), set()
    for epoch in range(12):
        for group in planned(method, labels, epoch).reshape(-1, 4):
            met |= {frozenset(pair) for pair in itertools.combinations(group.tolist(), 2)}
    assert len(met) == 6 * 8 * 7 // 2


def test_the_order_is_each_seeds_own(inputs):
    labels = inputs.images.labels
    assert not np.array_equal(planned(build(0), labels), planned(build(1), labels))
    assert build().order.sort().values.tolist() == list(range(48))


def test_controls_change_the_edges_only(inputs):
    given = whole(inputs)
    tree, everything, random, one = (build(**h) for h in ({}, *DAMLRRM.controls.values()))
    f, y = tree.embed(given.images), given.labels
    positive, _ = pair_masks(y)
    values = [m.loss(given)["spanning tree"] for m in (tree, one, everything)]
    assert values[0] == values[1] == tree_pairs(f, y, scale=tree.scale)
    assert values[2] == tree_pairs(f, y, scale=tree.scale, edges=positive)
    torch.manual_seed(3)
    edges = minimum_spanning_trees(torch.rand(48, 48), y)
    assert_trees(edges, y)
    torch.manual_seed(3)
    first, second = (random.loss(given)["spanning tree"] for _ in range(2))
    assert first == tree_pairs(f, y, scale=tree.scale, edges=edges) and first != second
    assert values[0] < min(first, second)  # of all trees, the minimum has the shortest edges


@pytest.mark.parametrize("hyper", [{}, *DAMLRRM.controls.values()], ids=str)
def test_training_lowers_the_loss_and_resumes_exactly(hyper, inputs, resumed_exactly):
    recipe = Recipe(4, 4, 5, 3e-3, 3e-3, 1e-4)
    method, done = resumed_exactly(partial(build, **hyper), recipe, after=2)
    assert done.history[-1]["spanning tree"] < 0.97 * done.history[0]["spanning tree"]
    assert F.normalize(method.embed(whole(inputs).images)).isfinite().all()


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(StudyError, match="did you mean 'random'"):
        build(edges="randon")
