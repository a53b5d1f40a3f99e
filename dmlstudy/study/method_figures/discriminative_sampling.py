"""Figures of DE-DSP: a policy that finds the confusable class, and what the trained policy proposes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import Image
from torch import Tensor

from dmlstudy.methods.discriminative_sampling import (
    DiscriminativeSampling,
    Policy,
    draw_log_probabilities,
    tuple_losses,
)
from dmlstudy.study.figures import NEGATIVE, NEUTRAL, POSITIVE, _picture

if TYPE_CHECKING:
    from dmlstudy.study.notebook_report import Report

ANGLES = (0, 25, 60, 120, 190, 280)


def finding_the_confusable_class(steps: int = 120) -> Image:
    """Six classes that stay where they are; class 0 proposes two others per step and learns from their loss."""
    angle = torch.tensor(ANGLES).deg2rad()
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    history = _reinforce(centres, steps)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.3), width_ratios=(1, 1.5))
    left.add_patch(plt.Circle((0, 0), 1, fill=False, color="#cccccc"))
    for c, centre in enumerate(centres):
        colour = "black" if c == 0 else f"C{c}"
        left.scatter(*centre, s=70 if c == 0 else 20 + 500 * float(history[-1, c]), color=colour)
        left.annotate(str(c), (1.5 * centre).tolist(), ha="center", va="center")
        if c:
            right.plot(history[:, c], color=colour, label=f"class {c}")
    left.set(
        xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal", title="anchor 0; area: final share"
    )
    left.axis("off")
    right.axhline(0.2, color=NEUTRAL, ls="--", lw=1)
    right.set(xlabel="batches", ylabel="π(c | class 0)", ylim=(0, 1))
    right.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return _picture(figure)


def _reinforce(centres: Tensor, steps: int) -> Tensor:
    """pi(. | class 0) before every step and after the last, [steps + 1, C]."""
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = Policy(2, 32)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.0)
    history, mean = [], torch.tensor(2.0).log()
    for _ in range(steps + 1):
        logits = policy(centres[0], centres).masked_fill(
            torch.arange(len(centres)) == 0, -torch.inf
        )
        history.append(logits.detach().softmax(0))
        drawn = torch.multinomial(history[-1], 2, generator=draw)
        images = centres[[0, *drawn.tolist()]][:, None].expand(-1, 2, -1)
        reward = tuple_losses(2 * (images + 0.1 * torch.randn(3, 2, 2, generator=draw))[:, None])
        loss = -((reward - mean) * draw_log_probabilities(logits, drawn)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        mean = 0.9 * mean + 0.1 * reward.mean()
    return torch.stack(history)


@torch.inference_mode()
def proposals(report: Report, shown: int = 40) -> Image:
    """How much more often than at random up to forty classes propose each other, by class and by affinity."""
    method, names = (
        cast(DiscriminativeSampling, report.runs[0].method),
        report.benchmark.train.classes,
    )
    classes = torch.linspace(0, len(names) - 1, min(shown, len(names))).long()
    pi = torch.stack([method.logits(int(c)).softmax(0) for c in classes]).cpu()
    others = method.usable.sum().item() - 1
    entropy = torch.special.entr(pi).sum(1).mean().exp()
    print(f"on average as if from {entropy:.1f} of {others} classes; most often proposed:")
    for place in pi.flatten().topk(min(5, pi.numel())).indices.tolist():
        anchor, c = divmod(place, len(names))
        print(f"  {names[classes[anchor]]} → {names[c]}: {100 * pi[anchor, c]:.0f} %")
    ratio = (others * pi[:, classes]).clamp_min(1e-3).log2()
    e = F.normalize(method.centroids.cpu())[classes]
    apart = ~torch.eye(len(classes), dtype=torch.bool)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.3))
    limit = max(float(ratio[apart].abs().max()), 0.1)
    picture = left.imshow(
        ratio.masked_fill(~apart, torch.nan), cmap="PiYG_r", vmin=-limit, vmax=limit
    )
    figure.colorbar(picture, ax=left, label="log₂ π / uniform")
    left.set(xlabel="proposed class", ylabel="anchor class", xticks=[], yticks=[])
    right.plot((e @ e.T)[apart], ratio[apart], ".", ms=3, color=NEGATIVE, alpha=0.5)
    right.axhline(0, color=POSITIVE, ls="--", lw=1)
    right.set(xlabel="affinity (cosine of centroids)", ylabel="log₂ π / uniform")
    figure.tight_layout()
    return _picture(figure)
