"""Shape of the embedding space: spectrum, density, alignment and uniformity."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlstudy.class_means import class_means
from dmlstudy.evaluation.search import BLOCK

# Share of a singular value that counts as zero. Below it lies the rounding of float32 embeddings, which a
# smaller floor would let into rho wherever the rank is not full.
FLOOR = 1e-7


def spectral_decay(embeddings: Tensor) -> float:
    """rho = KL(U || sigma): how far the singular value spectrum is from flat; 0 is flat.

    Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning",
    ICML 2020: singular values of the [N, D] matrix, not centred, normalised to sum 1, U uniform. Shares are
    clipped at `FLOOR`, so that a collapsed space has a large rho, not an infinite one.

    >>> round(spectral_decay(torch.diag(torch.tensor([3., 1.]))), 6)
    0.143841
    """
    x = embeddings.double()
    # sigma^2 are the eigenvalues of the smaller Gram matrix.
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    sigma = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = (sigma / sigma.sum().clamp_min(1e-30)).clamp_min(FLOOR)
    return float(-(share * len(share)).log().mean())


def density(embeddings: Tensor, labels: Tensor) -> float:
    """pi_intra / pi_inter: mean distance within classes over mean distance between class centres.

    Roth et al., ICML 2020. Larger means that classes keep more of their inner variety. Embeddings are
    normalised first; classes of one image have no inner distance and are left out of pi_intra. NaN if no
    class has two images, or if there is only one class.
    """
    f = F.normalize(embeddings.float())
    classes, position = labels.unique(return_inverse=True)
    counts = torch.bincount(position)
    order = position.argsort(stable=True)
    members = f[order].split(counts.tolist())
    inner = torch.stack([torch.pdist(rows).mean() for rows in members])
    centres = class_means(f, position, len(classes))
    # The mean over no pairs is NaN: what classes of one image, or a single class, have.
    between = torch.pdist(F.normalize(centres)).mean()
    return float(inner.nanmean() / between.clamp_min(1e-12))


def alignment(embeddings: Tensor, labels: Tensor) -> float:
    """E ||f_i - f_j||^2 over positive pairs of unit rows; smaller is tighter (Wang & Isola, ICML 2020).

    In closed form: over all ordered pairs of a class the sum is 2 (n^2 - |sum f|^2). NaN if no class has two
    images.
    """
    f = F.normalize(embeddings.double())
    _, position = labels.unique(return_inverse=True)
    n = torch.bincount(position).double()
    sums = torch.zeros(len(n), f.shape[1], dtype=f.dtype).index_add_(0, position, f)
    several = n > 1
    total = 2 * (n.square() - sums.square().sum(1))[several].sum()
    return float(total / (n * (n - 1))[several].sum())


def mean_cosine(embeddings: Tensor) -> float:
    """Mean cosine of all pairs of different rows; 1 is a collapse. NaN for a single row.

    >>> round(mean_cosine(torch.tensor([[1., 0.], [0., 2.], [0., 3.]])), 6)
    0.333333
    """
    n = len(embeddings)
    total = float(F.normalize(embeddings.double()).sum(0).square().sum())
    return (total - n) / (n * (n - 1)) if n > 1 else math.nan


def relative_spread(embeddings: Tensor) -> float:
    """Root mean square distance of the rows from their mean, over their root mean square length: 0..1, 0 is a collapse.

    Of unit rows it is sqrt(1 - mean cosine), up to 1/N.

    >>> relative_spread(torch.tensor([[3., 4.], [3., -4.]]))
    0.8
    """
    x = embeddings.double()
    squares, centre = float(x.square().sum(1).mean()), float(x.mean(0).square().sum())
    return math.sqrt(max(squares - centre, 0.0) / max(squares, 1e-300))


def uniformity(embeddings: Tensor) -> float:
    """log E exp(-2 ||f_i - f_j||^2) over pairs of unit rows; smaller is more even (Wang & Isola, ICML 2020).

    NaN for a single row.
    """
    f = F.normalize(embeddings.float())
    step = max(1, BLOCK // len(f))
    total = sum(
        float((f[i : i + step] @ f.T).mul_(4).sub_(4).exp_().sum(dtype=torch.float64))
        for i in range(0, len(f), step)
    )
    n = len(f)
    return math.log((total - n) / (n * (n - 1))) if n > 1 else math.nan
