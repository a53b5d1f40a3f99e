"""One method on one data set: every seed trained, tested once, compared with the untrained trunk."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlstudy.data import (
    Activations,
    Benchmark,
    ImageSet,
    Inputs,
    Pixels,
    Track,
    cache_activations,
    cache_root,
    content_key,
    data_root,
    load,
)
from dmlstudy.errors import StudyError
from dmlstudy.evaluation import Evaluation, evaluate, retrieve
from dmlstudy.methods import EmbedAll, Method, TrainingSet, find_method
from dmlstudy.networks import Network, build_network
from dmlstudy.study.collapse import State, state
from dmlstudy.study.fingerprint import code_fingerprint
from dmlstudy.study.params import PRESENTATION, Settings, settings, short_name
from dmlstudy.study.whole_file import whole_file
from dmlstudy.training import Progress, Recipe, train


@dataclass
class Run:
    """One trained and tested seed.

    Attributes:
        labels: int [N] of the training images as the method was shown them, -1 where unlabelled.
        query, gallery: test embeddings [Q, D], [G, D]; gallery None if the queries search each other.
    """

    seed: int
    method: Method
    progress: Progress
    query: Tensor
    gallery: Tensor | None
    evaluation: Evaluation
    labels: np.ndarray

    @property
    def losses(self) -> tuple[float, float]:
        """The first loss term: mean over the last tenth of the steps, and for equal embeddings; NaN untrained."""
        steps, at_a_point = self.progress.steps, self.progress.collapsed
        if not at_a_point:
            return nan, nan
        term = next(iter(at_a_point))
        return fmean(row[term] for row in steps[-max(len(steps) // 10, 1) :]), at_a_point[term]

    @property
    def collapsed(self) -> State:
        return state(self.evaluation.metrics["relative spread"], *self.losses)


class Experiment:
    """Builds, trains and tests what the settings say.

    Args:
        settings: checked parameters.
        log: receives one line per epoch.
    """

    def __init__(self, settings: Settings, log: Callable[[str], None] = print):
        self.settings, self.protocol, self.log = settings, settings.protocol, log
        torch.set_num_threads(self.protocol.threads)
        if self.protocol.device == "cuda" and not torch.cuda.is_available():
            raise StudyError("device is 'cuda', but torch finds no GPU here: set device to 'cpu'.")

    @cached_property
    def benchmark(self) -> Benchmark:
        p = self.protocol
        benchmark = load(p.dataset, p.resize)
        return benchmark if p.fold is None else benchmark.fold(p.fold, p.folds)

    def run(self, seed: int, overrides: dict[str, Any] | None = None, method: str = "") -> Run:
        """Train (or resume) and test one seed.

        Args:
            overrides: hyperparameters, and keys of the track and the recipe, that make a control or a trial; "method"
                makes it another row.
            method: another method with its defaults, instead of the settings' own.
        """
        given = dict(overrides or {})
        other = given.pop("method", method)
        track, recipe = self.protocol.track, self.protocol.recipe
        track = replace(track, **{key: given.pop(key) for key in vars(track) if key in given})
        recipe = replace(recipe, **{key: given.pop(key) for key in vars(recipe) if key in given})
        # All of another row's hyperparameters by name, so that it shares the checkpoint of a teacher.
        hyper = settings(other, given).hyper if other else self.settings.hyper | given
        labels = track.labels(self.benchmark.train)
        name = other or self.settings.method
        built, progress = self._train(seed, name, hyper, track, recipe, labels)
        return self._test(seed, built, progress, labels)

    @property
    def realised_track(self) -> dict[str, Any]:
        """For the record: shares of labelled and of wrongly labelled training images; {} without a track."""
        track = self.protocol.track
        return {} if track == Track() else {"labels": track.realised(self.benchmark.train)}

    def _train(
        self,
        seed: int,
        name: str,
        hyper: dict[str, Any],
        track: Track,
        recipe: Recipe,
        labels: np.ndarray,
    ) -> tuple[Method, Progress]:
        """A method trained to the last epoch, from its checkpoint as far as that goes."""
        torch.manual_seed(seed)
        network = self._network()
        kind = find_method(name)
        built = kind(network, self._training_set, **hyper).to(self.protocol.device)
        train_inputs = self._inputs(self.benchmark.train)
        if self.protocol.head_start == "pca":
            network.start_head_from_pca(self._head_features(network, built, train_inputs))
        if kind.teacher:
            teacher, given = kind.teacher
            self.log(f"seed {seed}  teacher first: {find_method(teacher).title}")
            hyper_of_teacher = settings(teacher, given).hyper
            built.learn_from(self._train(seed, teacher, hyper_of_teacher, track, recipe, labels)[0])
        path = self._checkpoint(name, hyper, track, recipe, seed)
        resume = torch.load(path, weights_only=False) if path.exists() else None
        if resume:
            print(f"seed {seed}: goes on after epoch {resume.epoch}", file=sys.stderr)
            built.load_state_dict(resume.method)
            for row in resume.history:
                self._log_epoch(seed, row)

        def after_epoch(progress: Progress) -> None:
            self._log_epoch(seed, progress.history[-1])
            if self.protocol.epoch_scores:
                progress.scores.append(self._epoch_scores(built))
            remedy = "free some space or set DMLSTUDY_CACHE to another folder"
            with whole_file(path, remedy) as partial:
                torch.save(progress, partial)

        progress = train(
            built,
            train_inputs,
            labels,
            recipe,
            seed,
            resume=resume,
            after_epoch=after_epoch if name != "untrained" else lambda progress: None,
            device=self.protocol.device,
        )
        return built, progress

    def _log_epoch(self, seed: int, row: dict[str, float]) -> None:
        terms = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "epoch")
        self.log(f"seed {seed}  epoch {row['epoch']:2d}/{self.protocol.epochs}  {terms}")

    def _test(self, seed: int, method: Method, progress: Progress, labels: np.ndarray) -> Run:
        sets = self._test_sets(method)
        result = evaluate(
            *sets,
            similarity=method.similarity,
            ks=sorted({1, *self.protocol.ks}),  # R@1 is what records keep per class
            nmi_seeds=self.protocol.nmi_seeds,
        )
        return Run(seed, method, progress, sets[0], sets[2], result, labels)

    def _epoch_scores(self, method: Method) -> dict[str, float]:
        """R@1 and MAP@R in percent after an epoch, for the record only: nothing is chosen by them."""
        found = retrieve(*self._test_sets(method), similarity=method.similarity, ks=[1])
        scores = {"R@1": found.hits[1], "MAP@R": found.map_at_r}
        return {name: float(100 * values.double().mean()) for name, values in scores.items()}

    def _test_sets(self, method: Method) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Embeddings and labels of queries and, where the data set has one of its own, gallery."""
        query, gallery = self.benchmark.query, self.benchmark.gallery
        own = self._embed(method, query, "query"), torch.from_numpy(query.labels)
        if gallery is None:
            return *own, None, None
        return *own, self._embed(method, gallery, "gallery"), torch.from_numpy(gallery.labels)

    def _embed(self, method: Method, images: ImageSet, role: str) -> Tensor:
        embed_all = EmbedAll(method, self._inputs(images), self.protocol.device)
        return embed_all(lambda x: method.embed(x, role)).clone()

    @property
    def _training_set(self) -> TrainingSet:
        train = self.benchmark.train
        return TrainingSet(len(train.classes), len(train), self.protocol.epochs, train.groups)

    def _network(self) -> Network:
        """The starting network; its frozen part is taken off if its activations are cached."""
        p = self.protocol
        network = build_network(
            p.trunk,
            channels=self.benchmark.train.store.shape[3],
            embedding_size=p.embedding_size,
            trained=p.trained,
            weights=p.weights,
            weights_root=data_root(),
            tf_padding=p.tf_padding,
            pool=p.pool,
            freeze_bn=p.freeze_bn,
        )
        frozen = network.split_frozen() if p.cached_views else None
        # A random frozen part is another one for every seed.
        if frozen is not None and (self._cache is None or p.weights == "none"):
            self._cache = cache_activations(
                self.benchmark.train,
                # Channels last is half as fast again for depthwise convolutions on a CPU.
                frozen.eval().to(p.device).to(memory_format=torch.channels_last),
                _weights_key(frozen),
                size=p.crop,
                spec=p.augment,
                views=p.cached_views,
                device=p.device,
            )
        return network.to(p.device)

    _cache: Any = None
    _features: Tensor | None = None

    def _inputs(self, images: ImageSet) -> Inputs:
        if self._cache is not None:
            return Activations(images, self._cache)
        return Pixels(images, self.protocol.crop, self.protocol.augment)

    def _head_features(self, network: Network, method: Method, inputs: Inputs) -> Tensor:
        """Starting trunk features of the training images, computed once if the trunk starts pretrained."""
        if self._features is None or self.protocol.weights == "none":
            self._features = EmbedAll(method, inputs, self.protocol.device)(network.features)
        return self._features

    def _checkpoint(
        self, method: str, hyper: dict[str, Any], track: Track, recipe: Recipe, seed: int
    ) -> Path:
        everything = vars(self.protocol) | vars(track) | vars(recipe)
        protocol = {k: v for k, v in everything.items() if k not in PRESENTATION}
        key = content_key(
            code_fingerprint(method), torch.__version__, protocol, hyper, self.benchmark.checksum
        )
        name = f"{short_name(self.benchmark.name)}-{method}-{key}-seed{seed}.pt"
        return cache_root() / "runs" / name


def _weights_key(lower: torch.nn.Module) -> str:
    digest = hashlib.sha256(str(lower).encode())
    for tensor in lower.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
