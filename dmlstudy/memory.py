"""Memory: embeddings of past batches, which a batch can be compared with at no forward cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmlstudy.losses import Keys


class Memory(nn.Module):
    """A ring buffer of embeddings and labels; its content and pointer are in the state dict.

    Wang, Zhang, Huang, Scott, "Cross-Batch Memory for Embedding Learning", CVPR 2020 (XBM): embeddings drift slowly
    once a network has been trained a little, so old ones still serve as positives and negatives.

    Args:
        size: M, embeddings kept; the oldest make room for new ones.
        dimension: D.
        start: pushes that are passed over, while embeddings still drift fast.

    >>> memory = Memory(3, 1)
    >>> for i in range(2):
    ...     memory.push(torch.tensor([[2. * i], [2. * i + 1]]), torch.tensor([0, 1]))
    >>> keys = memory.keys()
    >>> keys.embeddings.flatten().tolist(), keys.labels.tolist(), keys.itself.tolist()
    ([3.0, 1.0, 2.0], [1, 1, 0], [2, 0])
    """

    def __init__(self, size: int, dimension: int, start: int = 0):
        super().__init__()
        self.start = start
        self.embeddings: Tensor  # [M, D]
        self.labels: Tensor  # [M]
        self.pushes: Tensor
        self.stored: Tensor  # embeddings stored so far, also those that are gone
        self.register_buffer("embeddings", torch.zeros(size, dimension))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pushes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("stored", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, embeddings: Tensor, labels: Tensor) -> None:
        """Store a batch, [B, D] and [B]; of one larger than the memory, its end."""
        size = len(self.labels)
        self.places = torch.full_like(labels, -1)  # of the last batch
        self.pushes += 1
        if self.pushes <= self.start:
            return
        kept = slice(-size, None)
        count = len(labels[kept])
        self.places[kept] = (self.stored + torch.arange(count, device=labels.device)) % size
        self.embeddings[self.places[kept]] = embeddings[kept]
        self.labels[self.places[kept]] = labels[kept]
        self.stored += count

    def keys(self) -> Keys | None:
        """What is stored, as keys of the batch pushed last; None before anything is."""
        filled = min(int(self.stored), len(self.labels))
        return Keys(self.embeddings[:filled], self.labels[:filled], self.places) if filled else None
