"""The report of an experiment inside a notebook: each part is one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from IPython.display import Code, DisplayHandle, Image, Markdown, display
from torch import Tensor

from dmlstudy.data import Track
from dmlstudy.evaluation import neighbours, pair_histograms
from dmlstudy.methods import citation, deviations, find_method
from dmlstudy.methods.untrained import Untrained
from dmlstudy.project import PROJECT
from dmlstudy.study import figures, measured, results
from dmlstudy.study.collapse import MARKS, worst
from dmlstudy.study.controls import comparisons, control_overrides, controls_table
from dmlstudy.study.experiment import Experiment, Run
from dmlstudy.study.literature import load_reported
from dmlstudy.study.measured import by_class, metrics
from dmlstudy.study.notebooks import assigned_parameters
from dmlstudy.study.parameter_files import PARAMS
from dmlstudy.study.params import settings, short_name
from dmlstudy.study.provenance import provenance
from dmlstudy.study.results import PERCENT
from dmlstudy.study.tables import (
    DASH,
    Cell,
    Note,
    Part,
    Table,
    change,
    markdown_text,
    number,
    signed,
)
from dmlstudy.study.verdict import epochs_note, mean_text, verdict


def begin(method: str, namespace: dict[str, Any]) -> Report:
    """Read the notebook's parameters out of its global names and check all of them.

    Parameters are the known ones and whatever else the parameters cell, or the one that papermill injected, assigns:
    papermill only warns of a parameter that the notebook does not know. Other global names are the reader's own.

    Raises:
        StudyError: unknown parameter, wrong type or range, unknown data set.
    """
    known = settings(method, {}).flat
    names = [*known, *sorted(assigned_parameters(namespace.get("In", ()), known) - set(known))]
    given = {name: namespace[name] for name in names if name in namespace}
    return Report(Experiment(settings(method, given)))


class Report:
    """Runs an experiment and shows it; every public method is a cell of the notebooks."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.settings, self.protocol = experiment.settings, experiment.protocol
        self.benchmark = experiment.benchmark
        self.method = find_method(self.settings.method)
        self.runs: list[Run] = []
        self.baselines: list[Run] = []
        self.control_runs: dict[str, list[Run]] = {}
        self._verdict: DisplayHandle | None = None

    def verdict(self) -> None:
        """The result in one sentence, English and Chinese; filled in at the end of the run."""
        self._verdict = display(Markdown("*Running…*"), display_id="verdict")

    def conditions(self) -> Table:
        """Data, completeness and provenance."""
        b = self.benchmark
        source = provenance(self.settings.method, b, self.protocol.device)
        labels = self.experiment.realised_track.get("labels", {})
        rows = {
            "data set": f"{b.title}: {len(b.train):,} training images of {len(b.train.classes):,} classes, "
            f"{len(b.query):,} test queries of {len(b.query.classes):,} other classes",
            "completeness": b.completeness,
            "training labels": ", ".join(f"{100 * v:.1f} % {name}" for name, v in labels.items()),
            "comparable with the papers": "yes" if b.comparable else "no",
            "seeds": ", ".join(map(str, self.protocol.seeds)),
            "paper": citation(self.method),
            "certainty": self.method.certainty,
            "code": f"commit {source['git']}{' with changes' if source['dirty'] else ''}, "
            f"fingerprint {source['code']}, lock {source['lock']}",
            "versions": ", ".join(f"{k} {v}" for k, v in source["versions"].items()),
            "data checksum": source["data"],
            "device": source["device"],
        }
        return Table("conditions", ["", "value"], [row for row in rows.items() if row[1]])

    def train(self) -> None:
        """Train and test every seed, the untrained trunk beside it, and the method's controls."""
        self.runs, self.baselines, self.control_runs = [], [], {}
        seeds, run = self.protocol.seeds, self.experiment.run
        trained = not issubclass(self.method, Untrained)
        for seed in seeds:
            self.baselines.append(start := self._baseline(seed))
            self.runs.append(run(seed) if trained else start)
            here, there = (metrics(runs)["R@1"][-1] for runs in (self.runs, self.baselines))
            ran = "".join(f", {n} {name}" for name, n in self.runs[-1].method.phases().items())
            print(f"seed {seed}  R@1 {here:.2f}  (untrained trunk {there:.2f}){ran}")
        for name, overrides in control_overrides(self.settings, self.runs[0].method).items():
            # A teacher has been trained on every seed anyway.
            for seed in seeds if "method" in overrides else seeds[: self.protocol.control_seeds]:
                print(f"seed {seed}  control: {name}")
                self.control_runs.setdefault(name, []).append(run(seed, overrides))

    def _baseline(self, seed: int) -> Run:
        # Pretrained weights and a PCA head start the same whatever the seed.
        if self.baselines and self.protocol.weights != "none" and self.protocol.head_start == "pca":
            return self.baselines[0]
        return self.experiment.baseline(seed)

    def curves(self) -> Image:
        """Loss terms over steps, and where they would lie at full collapse."""
        steps = {run.seed: run.progress.steps for run in self.runs}
        return figures.training_curves(steps, self.runs[0].progress.collapsed)

    def table(self) -> Table:
        """Every metric: reported by the paper, here (mean ± 95 % interval over seeds), untrained trunk."""
        reported = self._reported() or {}
        rows: list[list[Cell]] = []
        baselines = metrics(self.baselines)
        for name, here in metrics(self.runs).items():
            start = baselines[name]
            paper = Part(f"{reported[name]:g}" if name in reported else DASH, "paper")
            delta = float(np.mean(here) - np.mean(start))
            # Of what is not in percent, more is not better.
            moved = change(delta, digits=2) if name.startswith(PERCENT) else signed(delta, 2)
            rows.append([name, paper, Part(mean_text(here), "ours"), mean_text(start), moved])
        gap = max(run.evaluation.tie_gap for run in self.runs)
        left_out = self.runs[0].evaluation.retrieval.excluded
        note = (
            "R@K is the hit rate in percent. Exact ties move R@1 by at most "
            f"{number(gap, 2)} points; {left_out} queries without a positive are left out."
        )
        heads = ["metric", "论文 reported", "本研究 here", "未训练 untrained trunk", "Δ"]
        notes = [Note(note), *epochs_note(self.runs)]
        return Table("metrics", heads, rows, notes=notes, lang="zh-Hans")

    def histograms(self) -> Image:
        """Similarities of same-class and different-class test pairs, before and after training."""
        pairs = {
            "untrained trunk": self.baselines[0],
            f"trained, seed {self.runs[0].seed}": self.runs[0],
        }
        return figures.similarity_histograms({k: self._pair_histogram(v) for k, v in pairs.items()})

    def gallery(self) -> Image | Markdown:
        """Best, random and worst queries with their five nearest images, where the data may be shown."""
        show = self.protocol.gallery
        if show == "never" or (show == "embedded" and not self.benchmark.shareable):
            return Markdown(
                f"*Images of {markdown_text(self.benchmark.title)} are not shown in a shared report; "
                "rerun with `gallery: always` to see them.*"
            )
        run, scored = self.runs[0], self.runs[0].evaluation.retrieval
        order = scored.map_at_r.argsort(descending=True, stable=True)
        middle = np.random.default_rng(0).choice(len(order), 3, replace=False)
        chosen = [("best", order[:3]), ("random", order[np.sort(middle)]), ("worst", order[-3:])]
        queries = [(kind, int(scored.queries[i])) for kind, group in chosen for i in group]
        return figures.gallery([self._gallery_row(run, *query) for query in queries])

    def map(self) -> Image:
        """Ten test classes in the first two principal components of the embedding."""
        labels = torch.from_numpy(self.benchmark.query.labels)
        return figures.embedding_map(self.runs[0].query, labels)

    def worst_classes(self, count: int = 5) -> Table:
        """Test classes that are found least, mean over seeds, with the untrained trunk beside them."""
        names = self.benchmark.query.classes
        groups = self.runs, self.baselines
        here, start = (by_class(runs, len(names))["R@1"].mean(0) for runs in groups)
        scored = np.flatnonzero(~np.isnan(here))
        worst = scored[np.argsort(here[scored], kind="stable")][:count]
        rows = [(names[c], number(here[c], 2), number(start[c], 2)) for c in worst]
        return Table("worst_classes", ["class", "R@1 here", "untrained trunk"], rows)

    def controls(self) -> Table | Markdown:
        """The method beside its controls, on the same seeds."""
        if not self.control_runs:
            return Markdown("*No control was run: this row has none, or `control_seeds` is 0.*")
        place = self.protocol.dataset, self.settings.method
        states = {
            name: worst(r.collapsed for r in runs) for name, runs in self.control_runs.items()
        }
        controls = {n + MARKS[states[n]]: metrics(runs) for n, runs in self.control_runs.items()}
        compared = comparisons(*place, metrics(self.runs), controls)
        return controls_table(compared, ("R@1", "R-precision", "MAP@R", "NMI"), digits=2)

    def parameters(self) -> Table:
        """Every parameter of this run."""
        rows = [(k, repr(v)) for k, v in self.settings.flat.items() if k != "record"]
        return Table("parameters", ["", "value"], rows)

    def finish(self) -> None:
        """Fill in the verdict and write the record, the only proof that the run succeeded."""
        if self._verdict:
            self._verdict.update(Markdown(self.verdict_text()))
        if self.protocol.record:
            results.save(self.record(), PROJECT / self.protocol.record)
            print("record written")

    def verdict_text(self) -> str:
        """The result in one sentence, English and Chinese, as Markdown."""
        return verdict(self.benchmark.title, self.runs, self.baselines, self.control_runs)

    def record(self) -> results.Record:
        """This run's record."""
        b = self.benchmark
        track = self.experiment.realised_track
        untracked = () if track else vars(Track())  # what has no effect is not recorded
        return results.Record(
            method=self.settings.method,
            title=self.method.title,
            dataset=short_name(self.protocol.full_name),
            dataset_title=", ".join(filter(None, (b.title, self.protocol.protocol))),
            seeds=list(self.protocol.seeds),
            metrics=metrics(self.runs),
            baseline=metrics(self.baselines),
            comparable=b.comparable,
            completeness=b.completeness,
            reported=self._reported(),
            deviations=deviations(self.runs[0].method),
            controls={title: metrics(runs) for title, runs in self.control_runs.items()},
            per_class=measured.per_class(self.runs, self.baselines, b.query.classes),
            collapse=measured.collapse({"method": self.runs, **self.control_runs}),
            epochs=measured.epochs(self.runs, self.protocol.fold),
            params={k: v for k, v in self.settings.flat.items() if k not in ("record", *untracked)},
            timing={"training seconds": [round(run.progress.seconds, 1) for run in self.runs]},
            provenance=provenance(self.settings.method, b, self.protocol.device) | track,
        )

    def _reported(self) -> dict[str, float] | None:
        reported = load_reported(PARAMS / "reported.yaml")
        return reported.numbers(self.benchmark.name, self.settings.method)

    def _pair_histogram(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        labels, gallery = torch.from_numpy(self.benchmark.query.labels), self.benchmark.gallery
        searched = run.gallery, None if gallery is None else torch.from_numpy(gallery.labels)
        similarity = run.method.similarity
        return pair_histograms(run.query, labels, *searched, similarity=similarity, bins=80)

    def _gallery_row(
        self, run: Run, kind: str, query: int
    ) -> tuple[str, np.ndarray, list[tuple[np.ndarray, bool]]]:
        images = self.benchmark.query
        searched = self.benchmark.gallery or images
        # One more than shown: without a gallery of its own, the query finds itself.
        other = run.query if run.gallery is None else run.gallery
        one, similarity = run.query[query : query + 1], run.method.similarity
        nearest = neighbours(one, other, 6, similarity=similarity)[1][0]
        kept = [int(i) for i in nearest if run.gallery is not None or int(i) != query][:5]
        label = images.labels[query]
        shown = [
            (searched.store[searched.rows[i]], bool(searched.labels[i] == label)) for i in kept
        ]
        return f"{kind}: {images.classes[label][:14]}", images.store[images.rows[query]], shown


def source(thing: Callable[..., Any]) -> Code:
    """The source of a library function, as the notebook imports it."""
    return Code(inspect.getsource(thing), language="python")
