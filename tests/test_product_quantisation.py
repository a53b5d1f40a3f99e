"""Product quantisation: what is embedded, ranked, and compared with k-means codes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same, build, go, whole

from dmlstudy.errors import StudyError
from dmlstudy.geometry import squared_distance
from dmlstudy.methods import EmbedAll
from dmlstudy.methods.product_quantisation import ProductQuantisation
from dmlstudy.product_codes import faiss_index, hard_codes

quantised = partial(build, ProductQuantisation, codebooks=4, codewords=8)


def test_embedding_holds_both_codes_and_ranks_soft_to_hard(inputs):
    method = quantised()
    z = EmbedAll(method, inputs)()
    soft, hard = z.chunk(2, 1)
    vectors = method.vectors().detach()
    for part, words in zip(hard.split(2, 1), vectors, strict=True):
        assert (part[:, None] == words).all(2).any(1).all()
    distances = torch.stack([(hard - s).square().sum(1) for s in soft])
    ours = method.similarity(z, z)
    torch.testing.assert_close(ours, -distances, rtol=1e-5, atol=1e-5)
    assert EmbedAll(method, inputs)(lambda x: method.embed(x, "gallery")).equal(z)
    index = faiss_index(hard_codes(hard, vectors), vectors)
    assert index.ntotal == 48 and index.sa_code_size() == 2  # 4 x 3 bits
    assert np.array_equal(index.reconstruct_n(0, 48), hard.numpy())
    theirs, nearest = index.search(soft.numpy(), 48)
    theirs = -torch.from_numpy(theirs)
    torch.testing.assert_close(ours.gather(1, torch.from_numpy(nearest)), theirs, rtol=0, atol=1e-5)


def test_faiss_needs_a_power_of_two_of_codewords():
    with pytest.raises(StudyError, match="power of two"):
        faiss_index(torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(4, 5, 2))


def test_equal_codes_tie_exactly(inputs):
    method = quantised(codebooks=2, codewords=2)
    z = EmbedAll(method, inputs)()
    codes = hard_codes(z[:, 8:], method.vectors().detach())
    for column, code in zip(method.similarity(z, z).T, codes, strict=True):
        same = (codes == code).all(1)
        assert (method.similarity(z, z)[:, same] == column[:, None]).all()
    assert len(codes.unique(dim=0)) <= 4 < len(codes)


def test_sub_vectors_and_codes_are_unit_and_first_assigned_to_the_nearest_codeword(inputs):
    method, plain = quantised(), quantised(intra_normalise=False)
    x, z = (EmbedAll(method, inputs)(f).clone() for f in (method._sub_vectors, method.network))
    with torch.no_grad():
        method.codeword_vectors.mul_(3)  # their length must not matter
    for vectors in (x, EmbedAll(method, inputs)().unflatten(1, (8, 2))):
        torch.testing.assert_close(vectors.norm(dim=2), torch.ones(vectors.shape[:2]))
    vectors = method.codeword_vectors.detach() / 3
    nearest = torch.stack([squared_distance(x[:, m], vectors[m]).argmin(1) for m in range(4)], 1)
    assert torch.equal(method.assign(x).argmax(2), nearest)
    soft = torch.einsum("bmk,mkw->bmw", method.assign(x), vectors)
    ours = EmbedAll(method, inputs)()[:, :8].unflatten(1, (4, 2))
    torch.testing.assert_close(ours, F.normalize(soft, dim=2))
    raw = EmbedAll(plain, inputs)(plain._sub_vectors)
    for m in range(4):  # each has its share of the leading coordinates
        assert torch.equal(raw[:, m], z[:, [m, m + 4]])
    assert (EmbedAll(plain, inputs)().unflatten(1, (8, 2)).norm(dim=2) < 0.99).any()


def test_k_means_control_is_the_float_network_quantised_after_training(inputs):
    plain, after = quantised(ranking="float"), quantised(ranking="k-means")
    assert_same(*(go(method, inputs).history for method in (plain, after)))
    x, z = EmbedAll(plain, inputs)().clone(), EmbedAll(after, inputs)()
    query, stored = z.chunk(2, 1)
    assert torch.equal(query, x)
    for m, vectors in enumerate(after.codeword_vectors.detach()):
        part, code = (rows[:, 2 * m : 2 * m + 2] for rows in (x, stored))
        distance = squared_distance(part, vectors)
        assert torch.equal(code, vectors[distance.argmin(1)])
        for k in range(8):  # Lloyd's condition: a codeword is the mean of what it stands for
            mine = part[distance.argmin(1) == k]
            torch.testing.assert_close(vectors[k], mine.mean(0), rtol=0, atol=0.05)
    expected = -torch.stack([(stored - q).square().sum(1) for q in x])
    torch.testing.assert_close(after.similarity(z, z), expected, rtol=1e-4, atol=1e-5)


def test_symmetric_trains_the_same_network_and_ranks_hard_to_hard(inputs):
    one, other = quantised(), quantised(ranking="symmetric")
    assert_same(*(go(method, inputs).history for method in (one, other)))
    both, hard = (EmbedAll(method, inputs)() for method in (one, other))
    assert torch.equal(both[:, 8:], hard)
    expected = -squared_distance(hard)
    torch.testing.assert_close(other.similarity(hard, hard), expected, rtol=1e-5, atol=1e-5)


def test_float_control_quantises_nothing(inputs):
    method = quantised(ranking="float")
    assert set(go(method, inputs).history[-1]) == {"epoch", "softmax", "centre"}
    z = EmbedAll(method, inputs)(method.network)
    f = F.normalize(z.unflatten(1, (2, 4)).mT, dim=2).flatten(1)
    torch.testing.assert_close(EmbedAll(method, inputs)(), f)
    torch.testing.assert_close(method.similarity(f, f), -squared_distance(f))


def test_zero_embeddings_pass_no_nan(inputs):
    method = quantised()
    torch.nn.init.zeros_(method.network.head.weight)
    torch.nn.init.zeros_(method.network.head.bias)
    sum(method.loss(whole(inputs)).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
