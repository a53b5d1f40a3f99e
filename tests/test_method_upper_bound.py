"""Upper bound: the closed form is the sum over triplets, it bounds them, and the centroids never move."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dmlstudy.errors import StudyError
from dmlstudy.losses.upper_bound import upper_bound
from dmlstudy.methods.base import Batch, Task
from dmlstudy.methods.upper_bound import UpperBound
from dmlstudy.networks import build_network
from dmlstudy.training import EmbedAll, Recipe, train

TASK = Task(6, 48, 3)
RECIPE = Recipe(4, 4, 3, 1e-3, 1e-3, 1e-4)
X = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], dtype=torch.float64)


def equal_classes(seed, classes=3, size=4, d=5):
    """Embeddings of varied length, shuffled labels of equal class sizes, centroids anywhere."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat(size)[torch.randperm(classes * size, generator=g)]
    x = torch.randn(len(y), d, generator=g, dtype=torch.float64).requires_grad_()
    return x, y, torch.randn(classes, d, generator=g, dtype=torch.float64)


def ordered_triplets(y):
    three = itertools.permutations(range(len(y)), 3)
    return [(i, j, k) for i, j, k in three if y[i] == y[j] and y[i] != y[k]]


def triplet_sum(x, y):
    return sum((x[i] - x[j]).norm() - (x[i] - x[k]).norm() for i, j, k in ordered_triplets(y))


def bound_sum(x, y, c):
    def to(i, m):
        return (x[i] - c[y[m]]).norm()

    return sum(to(i, i) - to(i, k) + to(j, i) + to(k, k) for i, j, k in ordered_triplets(y))


def scale(y, c):
    """G N, which the loss leaves out."""
    size = len(y) // len(c)
    return 3 * (len(c) - 1) * (size - 1) * size * len(y)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_equals_the_sum_over_all_triplets_in_value_and_gradient(seed, classes):
    x, y, c = equal_classes(seed, classes)
    ours, brute = scale(y, c) * upper_bound(x, y, centroids=c), bound_sum(x, y, c)
    torch.testing.assert_close(ours, brute)
    gradients = [torch.autograd.grad(value, x)[0] for value in (ours, brute)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unit", [False, True])
def test_is_never_below_the_triplets(seed, unit):
    x, y, c = equal_classes(seed)
    x, c = (F.normalize(x), torch.eye(3, 5).double()) if unit else (x, c)
    assert scale(y, c) * upper_bound(x, y, centroids=c) >= triplet_sum(x, y)


def test_is_tight_around_equidistant_centroids():
    """Every point within epsilon/2 of its centroid: 0 <= L_d - L_t <= H (k_max - k_min + 3 epsilon)."""
    x, y, _ = equal_classes(0)
    c = torch.eye(3, 5).double()
    for epsilon in (1e-1, 1e-3):
        near = c[y] + 0.49 * epsilon * F.normalize(x)
        gap = scale(y, c) * upper_bound(near, y, centroids=c) - triplet_sum(near, y)
        assert 0 <= gap <= len(ordered_triplets(y)) * 3 * epsilon


@pytest.mark.parametrize(
    ("labels", "bound", "triplets"),
    [([0, 0, 1, 1], -3.433951, -5.963773), ([0, 1, 0, 1], 9.975531, 3.417323)],
)
def test_values_of_the_card(labels, bound, triplets):
    y, c = torch.tensor(labels), torch.eye(2).double()
    assert float(scale(y, c) * upper_bound(X, y, centroids=c)) == pytest.approx(bound, abs=6e-7)
    assert float(bound_sum(X, y, c)) == pytest.approx(bound, abs=6e-7)
    assert float(triplet_sum(X, y)) == pytest.approx(triplets, abs=6e-7)


def test_squared_is_linear_in_the_coordinates_of_a_unit_output_and_no_bound():
    x, y, _ = equal_classes(1)
    f = F.normalize(x)
    own = f[torch.arange(len(y)), y]
    others = f[:, :3].sum(1) - own
    linear = (2 - 2 * own - (2 * 2 - 2 * others) / (3 * 2)).mean()
    torch.testing.assert_close(
        upper_bound(f, y, centroids=torch.eye(3, 5).double(), squared=True), linear
    )
    # On a line: twice the step is four times its square, so the triangle inequality is lost.
    line, pair = torch.tensor([[-1.0], [1.0], [-0.5], [0.5]]), torch.tensor([0, 0, 1, 1])
    centroids = torch.zeros(2, 1)
    squares = sum(
        float((line[i] - line[j]).square() - (line[i] - line[k]).square())
        for i, j, k in ordered_triplets(pair)
    )
    assert (
        scale(pair, centroids) * upper_bound(line, pair, centroids=centroids, squared=True)
        < squares
    )


def test_a_single_class_has_no_others():
    value = upper_bound(torch.ones(2, 3), torch.tensor([0, 0]), centroids=torch.zeros(1, 3))
    assert value.item() == pytest.approx(3**0.5)


# --- the method


def build(seed=0, **hyper):
    torch.manual_seed(seed)
    return UpperBound(build_network("convnet", channels=1, embedding_size=8), TASK, **hyper)


def go(method, inputs, **options):
    return train(method, inputs, inputs.images.labels, RECIPE, 0, **options)


def test_one_hot_centroids_are_equidistant_and_random_ones_are_not():
    def spread(method):
        apart = torch.cdist(method.centroids, method.centroids)[~torch.eye(6, dtype=torch.bool)]
        return float(apart.max() - apart.min())

    assert spread(build()) < 1e-6
    assert spread(build(centroids="random")) > 0.1
    torch.testing.assert_close(build(centroids="random").centroids.norm(dim=1), torch.ones(6))


def test_the_embedding_alone_decides_the_unit_output():
    method = build()
    f = F.normalize(torch.randn(5, 8))
    g = method.output(f)
    assert g.shape == (5, 6)
    torch.testing.assert_close(g.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(method.output(3 * f), g)


@pytest.mark.parametrize("hyper", [{}, *UpperBound.controls.values()], ids=str)
def test_training_lowers_the_loss_resumes_exactly_and_leaves_the_centroids(hyper, resumed_exactly):
    start = build(**hyper)
    method, done = resumed_exactly(partial(build, **hyper), RECIPE, after=1)
    assert done.history[-1]["upper bound"] < done.history[0]["upper bound"]
    assert torch.equal(method.centroids, start.centroids)
    assert not torch.equal(method.layer.weight, start.layer.weight)


def test_random_centroids_are_saved_and_one_hot_ones_need_not_be():
    assert "centroids" in build(centroids="random").state_dict()
    assert "centroids" not in build().state_dict()


def test_the_loss_is_of_the_output_and_the_embedding_is_before_it(inputs):
    method = build()
    y = torch.from_numpy(inputs.images.labels)
    batch = Batch(inputs.plain(torch.arange(48)), y, torch.arange(48))
    f = method.embed(batch.images)
    expected = upper_bound(F.normalize(f @ method.layer.weight.T), y, centroids=torch.eye(6))
    torch.testing.assert_close(method.loss(batch)["upper bound"], expected)
    assert EmbedAll(method, inputs)().shape == (48, 8)


def test_unknown_centroids_suggest_the_nearest():
    with pytest.raises(StudyError, match="did you mean 'one-hot'"):
        build(centroids="onehot")
