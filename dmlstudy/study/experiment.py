"""One method on one data set: every seed trained, tested once, compared with the untrained trunk."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
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
from dmlstudy.evaluation import Evaluation, evaluate
from dmlstudy.methods import EmbedAll, Method, TrainingSet, find_method
from dmlstudy.networks import Network, build_network
from dmlstudy.study.fingerprint import code_fingerprint
from dmlstudy.study.params import PRESENTATION, Settings, settings, short_name
from dmlstudy.training import Progress, train
from dmlstudy.whole_file import whole_file


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

    @property
    def controls(self) -> dict[str, dict[str, Any]]:
        """What makes each control of the method, by name, as `run` takes it; a teacher's own row comes first."""
        kind = find_method(self.settings.method)
        if kind.teacher is None:
            return kind.controls
        name, given = kind.teacher
        return {f"its teacher: {find_method(name).title}": {"method": name} | given} | kind.controls

    def run(self, seed: int, overrides: dict[str, Any] | None = None, method: str = "") -> Run:
        """Train (or resume) and test one seed.

        Args:
            overrides: hyperparameters and track keys that make a control; "method" makes it another row.
            method: another method with its defaults, instead of the settings' own.
        """
        given = dict(overrides or {})
        other = given.pop("method", method)
        track = self.protocol.track
        track = replace(track, **{key: given.pop(key) for key in vars(track) if key in given})
        # All of another row's hyperparameters by name, so that it shares the checkpoint of a teacher.
        hyper = settings(other, given).hyper if other else self.settings.hyper | given
        labels = track.labels(self.benchmark.train)
        name = other or self.settings.method
        built, progress = self._train(seed, name, hyper, track, labels)
        return self._test(seed, built, progress, labels)

    @property
    def realised_track(self) -> dict[str, Any]:
        """For the record: shares of labelled and of wrongly labelled training images; {} without a track."""
        track = self.protocol.track
        return {} if track == Track() else {"labels": track.realised(self.benchmark.train)}

    def _train(
        self, seed: int, name: str, hyper: dict[str, Any], track: Track, labels: np.ndarray
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
            built.learn_from(self._train(seed, teacher, hyper_of_teacher, track, labels)[0])
        path = self._checkpoint(name, hyper, track, seed)
        resume = torch.load(path, weights_only=False) if path.exists() else None
        if resume:
            print(f"seed {seed}: goes on after epoch {resume.epoch}", file=sys.stderr)
            built.load_state_dict(resume.method)
            for row in resume.history:
                self._log_epoch(seed, row)

        def after_epoch(progress: Progress) -> None:
            self._log_epoch(seed, progress.history[-1])
            remedy = "free some space or set DMLSTUDY_CACHE to another folder"
            with whole_file(path, remedy) as partial:
                torch.save(progress, partial)

        progress = train(
            built,
            train_inputs,
            labels,
            self.protocol.recipe,
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
        b = self.benchmark
        query = self._embed(method, b.query, "query")
        gallery = None if b.gallery is None else self._embed(method, b.gallery, "gallery")
        result = evaluate(
            query,
            torch.from_numpy(b.query.labels),
            gallery,
            None if b.gallery is None else torch.from_numpy(b.gallery.labels),
            similarity=method.similarity,
            ks=self.protocol.ks,
            nmi_seeds=self.protocol.nmi_seeds,
        )
        return Run(seed, method, progress, query, gallery, result, labels)

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

    def _checkpoint(self, method: str, hyper: dict[str, Any], track: Track, seed: int) -> Path:
        everything = vars(self.protocol) | vars(track)
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
