"""One method on one data set: every seed trained, tested once, compared with the untrained trunk."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from copy import deepcopy
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
from dmlstudy.methods.untrained import Untrained
from dmlstudy.networks import Network, build_network
from dmlstudy.portable import in_force
from dmlstudy.study.collapse import State, state
from dmlstudy.study.fingerprint import code_fingerprint
from dmlstudy.study.params import PRESENTATION, Settings, settings, short_name
from dmlstudy.training import Progress, Recipe, train
from dmlstudy.whole_file import whole_file

CALIBRATION = 256  # training images that a random trunk's BatchNorm statistics are measured on


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
        checkpoints: folder from which a run goes on; `runs` in the cache when left out.
    """

    def __init__(
        self,
        settings: Settings,
        log: Callable[[str], None] = print,
        checkpoints: Path | None = None,
    ):
        self.settings, self.protocol, self.log = settings, settings.protocol, log
        self.checkpoints = checkpoints or cache_root() / "runs"
        torch.set_num_threads(self.protocol.threads)
        if self.protocol.device == "cuda" and not torch.cuda.is_available():
            raise StudyError("device is 'cuda', but torch finds no GPU here: set device to 'cpu'.")

    @cached_property
    def benchmark(self) -> Benchmark:
        p = self.protocol
        benchmark = load(p.dataset, p.resize)
        return benchmark if p.fold is None else benchmark.fold(p.fold, p.folds)

    def run(self, seed: int, overrides: dict[str, Any] | None = None, trained: bool = True) -> Run:
        """Train (or resume) and test one seed.

        Args:
            overrides: hyperparameters, and keys of the track and the recipe, that make a control or a trial; "method"
                makes it another row.
            trained: else tested as it starts.
        """
        given = dict(overrides or {})
        other = given.pop("method", "")
        track, recipe = self.protocol.track, self.protocol.recipe
        track = replace(track, **{key: given.pop(key) for key in vars(track) if key in given})
        recipe = replace(recipe, **{key: given.pop(key) for key in vars(recipe) if key in given})
        # All of another row's hyperparameters by name, so that it shares the checkpoint of a teacher.
        hyper = settings(other, given).hyper if other else self.settings.hyper | given
        labels = track.labels(self.benchmark.train)
        name = other or self.settings.method
        built, progress = self._train(seed, name, hyper, track, recipe, labels, trained)
        return self._test(seed, built, progress, labels)

    def baseline(self, seed: int) -> Run:
        """The untrained trunk in this row's own embedding and test distance: what is left is training alone."""
        return self.run(seed, find_method(self.settings.method).start, trained=False)

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
        trained: bool = True,
    ) -> tuple[Method, Progress]:
        """A method trained to the last epoch, from its checkpoint as far as that goes."""
        network, kind = self._network(seed), find_method(name)
        built = kind(network, self._training_set, **hyper).to(self.protocol.device)
        if not trained:
            return built, Progress()
        train_inputs = self._inputs(self.benchmark.train)
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
            after_epoch=after_epoch,
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
        """Scores in percent after an epoch, for the record only: nothing is chosen by them."""
        found = retrieve(*self._test_sets(method), similarity=method.similarity, ks=[1])
        return {name: float(100 * score.double().mean()) for name, score in found.judged.items()}

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

    def _network(self, seed: int) -> Network:
        """The starting network; a pretrained trunk, and a head that is fitted to it, start alike for every seed."""
        if self.protocol.weights == "none":
            torch.manual_seed(seed)
            return self._build()
        if self._start is None:
            self._start = self._build()
        torch.manual_seed(seed)
        network = deepcopy(self._start)
        if self.protocol.head_start == "default":
            network.head.reset_parameters()
        return network

    def _build(self) -> Network:
        """A network with its head fitted; its frozen part is taken off if its activations are cached."""
        p, train = self.protocol, self.benchmark.train
        network = build_network(
            p.trunk,
            channels=train.store.shape[3],
            embedding_size=p.embedding_size,
            trained=p.trained,
            weights=p.weights,
            weights_root=data_root(),
            tf_padding=p.tf_padding,
            pool=p.pool,
            freeze_bn=p.freeze_bn,
            head_norm=p.head_norm,
            size=p.crop,
        ).to(p.device)
        if p.weights == "none":
            some = torch.linspace(0, len(train) - 1, min(len(train), CALIBRATION)).long()
            pixels = Pixels(train, p.crop, p.augment).test_inputs(some)
            network.calibrate_norms(pixels.to(p.device))
        frozen = network.split_frozen() if p.cached_views else None
        if frozen is not None:
            self._cache = cache_activations(
                train,
                # Channels last is half as fast again for depthwise convolutions on a CPU.
                frozen.eval().to(memory_format=torch.channels_last),
                _weights_key(frozen),
                size=p.crop,
                spec=p.augment,
                views=p.cached_views,
                device=p.device,
            )
        if p.head_start == "pca" or p.head_norm == "batch":
            start = Untrained(network, self._training_set)
            features = EmbedAll(start, self._inputs(train), p.device)(network.features)
            network.start_head(features.to(p.device), pca=p.head_start == "pca")
        return network

    _cache: Any = None
    _start: Network | None = None

    def _inputs(self, images: ImageSet) -> Inputs:
        if self._cache is not None:
            return Activations(images, self._cache)
        return Pixels(images, self.protocol.crop, self.protocol.augment)

    def _checkpoint(
        self, method: str, hyper: dict[str, Any], track: Track, recipe: Recipe, seed: int
    ) -> Path:
        everything = vars(self.protocol) | vars(track) | vars(recipe)
        protocol = {k: v for k, v in everything.items() if k not in PRESENTATION}
        key = content_key(
            (code_fingerprint(method), torch.__version__, in_force()),
            protocol,
            hyper,
            self.benchmark.checksum,
        )
        name = f"{short_name(self.benchmark.name)}-{method}-{key}-seed{seed}.pt"
        return self.checkpoints / name


def _weights_key(lower: torch.nn.Module) -> str:
    digest = hashlib.sha256(f"{lower}{in_force()}".encode())
    for tensor in lower.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
