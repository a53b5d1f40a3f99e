"""The one training loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlstudy.data import Inputs
from dmlstudy.errors import DivergedError, StudyError, unknown
from dmlstudy.methods.base import Batch, EmbedAll, Epoch, Method
from dmlstudy.samplers import pk_batches

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-3, momentum=0.9),
}
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train, the same for all methods.

    Attributes:
        p, k: classes per batch, images per class.
        epochs: passes over the training set.
        lr: learning rate of the embedding head.
        trunk_lr: learning rate of the trained trunk blocks.
        weight_decay: of all network parameters.
        optimiser: "adamw", or "sgd" with momentum 0.9.
        schedule: "constant", or "cosine" towards zero at the last epoch.
    """

    p: int
    k: int
    epochs: int
    lr: float
    trunk_lr: float
    weight_decay: float
    optimiser: str = "adamw"
    schedule: str = "constant"

    def factor(self, epoch: int) -> float:
        """What the schedule multiplies learning rates by; a function of the epoch, so resuming needs no state."""
        if self.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * epoch / self.epochs)) / 2


@dataclass
class Progress:
    """Everything that a run needs to go on after an epoch.

    Attributes:
        epoch: epochs done.
        history: one row per epoch: "epoch" and the mean of every loss term.
        steps: one row per step: every loss term.
        scores: one row per epoch, if `after_epoch` adds them: stored, never used.
        collapsed: what the terms of the last step would be if its embeddings were one point; {} without a step.
        seconds: time spent training.
    """

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    collapsed: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    method: dict[str, Any] = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)


def train(
    method: Method,
    inputs: Inputs,
    labels: np.ndarray,
    recipe: Recipe,
    seed: int,
    *,
    resume: Progress | None = None,
    after_epoch: Callable[[Progress], None] = lambda progress: None,
    device: str = "cpu",
) -> Progress:
    """Train a method in place; all randomness derives from (seed, epoch).

    Args:
        inputs: of the training images.
        labels: int [N], 0..C-1.
        resume: as given to `after_epoch` earlier; training goes on bit for bit as if never stopped (CPU).
        after_epoch: told of the progress after every epoch, for logs and checkpoints.

    Raises:
        DivergedError: a loss is not finite.
        StudyError: too few steps for the method's phases, or a trainable tensor is optimised twice or not at all.
    """
    require_steps(method, labels, recipe)
    optimiser = make_optimiser(method, recipe)
    rates = [group["lr"] for group in optimiser.param_groups]
    progress = resume or Progress()
    if resume:
        method.load_state_dict(resume.method)
        optimiser.load_state_dict(resume.optimiser)
    for epoch in range(progress.epoch, recipe.epochs):
        started = time.perf_counter()
        rng = np.random.default_rng([seed, epoch])
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        torch.manual_seed(int(rng.integers(2**63)))
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * recipe.factor(epoch)
        terms: list[dict[str, Tensor]] = []
        plan = Epoch(epoch, labels, recipe.p, recipe.k, rng, EmbedAll(method, inputs, device))
        for indices, tag in method.batches(plan):
            method.train()
            index = torch.from_numpy(indices)
            batch = Batch(
                images=inputs.augmented(index, method.views, generator).to(device),
                labels=torch.from_numpy(labels[indices]).repeat(method.views).to(device),
                indices=index.repeat(method.views).to(device),
                tag=tag,
            )
            losses = method.loss(batch)
            total = sum_finite(losses, epoch, len(terms))
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            method.after_step()
            terms.append({name: value.detach() for name, value in losses.items()})
        method.after_epoch(plan)
        progress.epoch = epoch + 1
        progress.history.append({"epoch": epoch + 1} | mean_terms(terms))
        progress.steps += [{name: float(value) for name, value in row.items()} for row in terms]
        if terms and progress.epoch == recipe.epochs:
            progress.collapsed = collapsed_terms(method, batch)
        progress.seconds += time.perf_counter() - started
        progress.method, progress.optimiser = method.state_dict(), optimiser.state_dict()
        after_epoch(progress)
    return progress


def make_optimiser(method: Method, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser over a method's parameter groups, which must hold every trainable tensor exactly once."""
    if recipe.optimiser not in OPTIMISERS:
        raise unknown("optimiser", recipe.optimiser, OPTIMISERS)
    if recipe.schedule not in SCHEDULES:
        raise unknown("schedule", recipe.schedule, SCHEDULES)
    groups = method.param_groups(recipe.lr, recipe.trunk_lr, recipe.weight_decay)
    optimised = [id(parameter) for group in groups for parameter in group["params"]]
    for name, parameter in method.named_parameters():
        times = optimised.count(id(parameter))
        if times != int(parameter.requires_grad):
            raise StudyError(
                f"{type(method).__name__}.param_groups gives '{name}' to the optimiser {times} times, "
                f"but it is {'trainable' if parameter.requires_grad else 'frozen'}."
            )
    return OPTIMISERS[recipe.optimiser](groups)


def require_steps(method: Method, labels: np.ndarray, recipe: Recipe) -> None:
    """Refuse a protocol under which a phase of the method would never begin."""
    if method.least_steps == 1:
        return
    epoch = pk_batches(labels, recipe.p, recipe.k, np.random.default_rng(0))
    steps = recipe.epochs * sum(1 for _ in epoch)
    if steps < method.least_steps:
        raise StudyError(
            f"{method.title} needs {method.least_steps} steps to go through all its phases, but epochs = "
            f"{recipe.epochs} makes {steps}: raise epochs."
        )


def sum_finite(losses: dict[str, Tensor], epoch: int, step: int) -> Tensor:
    """The sum of the named terms, which must be finite."""
    total = torch.stack(list(losses.values())).sum()
    if not total.isfinite():
        values = ", ".join(f"{name} = {float(value.detach()):g}" for name, value in losses.items())
        raise DivergedError(
            f"The loss is not finite in epoch {epoch + 1}, step {step + 1} ({values}): lower the learning rates."
        )
    return total


def collapsed_terms(method: Method, batch: Batch) -> dict[str, float]:
    """The loss terms of a batch if every embedding of it were their mean: the value at full collapse.

    A copy is asked, so that neither the method's state nor the random numbers that follow change.
    """
    twin = copy.deepcopy(method)
    for head in (twin.network.head, *twin.branches):
        head.register_forward_hook(lambda module, given, z: z.mean(0, keepdim=True).expand_as(z))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return {name: float(value) for name, value in twin.loss(batch).items()}


def mean_terms(terms: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each named term over an epoch's steps; steps that lack a term do not count for it."""
    names = dict.fromkeys(name for step in terms for name in step)
    return {
        name: float(torch.stack([step[name] for step in terms if name in step]).mean())
        for name in names
    }
