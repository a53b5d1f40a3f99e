"""The face of an experiment inside a notebook: each part of a report is one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from IPython.display import HTML, Code, DisplayHandle, Image, Markdown, display
from torch import Tensor

from dmlstudy.evaluation import neighbours, pair_histograms, t_interval
from dmlstudy.methods import deviations, find_method
from dmlstudy.project import PROJECT
from dmlstudy.study import figures, records
from dmlstudy.study.experiment import Experiment, Run
from dmlstudy.study.notebooks import assigned_parameters
from dmlstudy.study.params import PARAMS, settings, short_name
from dmlstudy.study.provenance import provenance
from dmlstudy.study.reported import load_reported


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

    def conditions(self) -> HTML:
        """Data, completeness and provenance."""
        b, source = (
            self.benchmark,
            provenance(self.settings.method, self.benchmark, self.protocol.device),
        )
        rows = {
            "data set": f"{b.title}: {len(b.train):,} training images of {len(b.train.classes):,} classes, "
            f"{len(b.query):,} test queries of {len(b.query.classes):,} other classes",
            "completeness": b.completeness,
            "comparable with the papers": "yes" if b.comparable else "no",
            "seeds": ", ".join(map(str, self.protocol.seeds)),
            "paper": self.method.paper,
            "certainty": self.method.certainty,
            "code": f"commit {source['git']}{' with changes' if source['dirty'] else ''}, "
            f"fingerprint {source['code']}, lock {source['lock']}",
            "versions": ", ".join(f"{k} {v}" for k, v in source["versions"].items()),
            "data checksum": source["data"],
            "device": source["device"],
        }
        return _table(rows)

    def train(self) -> None:
        """Train and test every seed, the untrained trunk beside it, and the method's controls."""
        with_self = self.settings.method != "untrained"
        for seed in self.protocol.seeds:
            self.baselines.append(self._baseline(seed))
            self.runs.append(self.experiment.run(seed) if with_self else self.baselines[-1])
            r1, start = (
                run.evaluation.metrics[self._first] for run in (self.runs[-1], self.baselines[-1])
            )
            print(f"seed {seed}  {self._first} {r1:.2f}  (untrained trunk {start:.2f})")
        for name, overrides in self.method.controls.items() if self.protocol.control_seeds else ():
            print(f"control: {name}")
            self.control_runs[name] = [
                self.experiment.run(seed, overrides)
                for seed in self.protocol.seeds[: self.protocol.control_seeds]
            ]

    def _baseline(self, seed: int) -> Run:
        # Pretrained weights and a PCA head start the same whatever the seed.
        if self.baselines and self.protocol.weights != "none" and self.protocol.head_start == "pca":
            return self.baselines[0]
        return self.experiment.run(seed, method="untrained")

    def curves(self) -> Image:
        """Loss terms over epochs."""
        return figures.training_curves({run.seed: run.progress.history for run in self.runs})

    def table(self) -> HTML:
        """Every metric: reported by the paper, here (mean ± 95 % interval over seeds), untrained trunk."""
        reported = self._reported() or {}
        rows = []
        for name in self.runs[0].evaluation.metrics:
            here, start = self._values(self.runs, name), self._values(self.baselines, name)
            paper = f"{reported[name]:g}" if name in reported else "—"
            delta = np.mean(here) - np.mean(start)
            rows.append((name, paper, _mean(here), _mean(start), f"{delta:+.2f}"))
        heads = ("metric", "论文 reported", "本研究 here", "未训练 untrained trunk", "Δ")
        gap = max(run.evaluation.tie_gap for run in self.runs)
        left_out = self.runs[0].evaluation.retrieval.excluded
        note = (
            f"R@K is the hit rate in percent. Exact ties move {self._first} by at most {gap:.2f} points; "
            f"{left_out} queries without a positive are left out."
        )
        return HTML(_html_table(heads, rows) + f"<p><small>{note}</small></p>")

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
                f"*Images of {self.benchmark.title} are not shown in a shared report; "
                "rerun with `gallery: always` to see them.*"
            )
        run, found = self.runs[0], self.runs[0].evaluation.retrieval
        order = found.map_at_r.argsort(descending=True, stable=True)
        middle = np.random.default_rng(0).choice(len(order), 3, replace=False)
        chosen = [("best", order[:3]), ("random", order[np.sort(middle)]), ("worst", order[-3:])]
        rows = [
            self._gallery_row(run, kind, int(found.queries[i]))
            for kind, group in chosen
            for i in group
        ]
        return figures.gallery(rows)

    def map(self) -> Image:
        """Ten test classes in the first two principal components of the embedding."""
        labels = torch.from_numpy(self.benchmark.query.labels)
        return figures.embedding_map(self.runs[0].query, labels)

    def worst_classes(self, count: int = 5) -> HTML:
        """Test classes that are found least, mean over seeds, with the untrained trunk beside them."""
        here, start = (self._per_class(runs).mean(0) for runs in (self.runs, self.baselines))
        names = self.benchmark.query.classes
        scored = np.flatnonzero(~np.isnan(here))
        worst = scored[np.argsort(here[scored], kind="stable")][:count]
        rows = [(names[c], f"{here[c]:.1f}", f"{start[c]:.1f}") for c in worst]
        return HTML(_html_table(("class", f"{self._first} here", "untrained trunk"), rows))

    def controls(self) -> HTML | Markdown:
        """The method beside its controls, on the same seeds."""
        if not self.control_runs:
            return Markdown("*No control was run: this row has none, or `control_seeds` is 0.*")
        n = self.protocol.control_seeds
        names = (self._first, "R-precision", "MAP@R", "NMI")
        compared = {
            self.method.title: self.runs[:n],
            **self.control_runs,
            "untrained trunk": self.baselines[:n],
        }
        rows = [
            (title, *(_mean(self._values(runs, name)) for name in names))
            for title, runs in compared.items()
        ]
        return HTML(_html_table(("", *names), rows))

    def parameters(self) -> HTML:
        """Every parameter of this run."""
        shown = {k: v for k, v in self.settings.flat.items() if k != "record"}
        return _table({name: repr(value) for name, value in shown.items()})

    def finish(self) -> None:
        """Fill in the verdict and write the record, the only proof that the run succeeded."""
        if self._verdict:
            self._verdict.update(Markdown(self._verdict_text()))
        if self.protocol.record:
            records.save(self.record(), (PROJECT / self.protocol.record))
            print("record written")

    def record(self) -> records.Record:
        """This run's record."""
        b = self.benchmark
        names = list(self.runs[0].evaluation.metrics)
        classes = ~np.isnan(self._per_class(self.runs)[0])
        return records.Record(
            method=self.settings.method,
            title=self.method.title,
            dataset=short_name(b.name),
            dataset_title=b.title,
            seeds=list(self.protocol.seeds),
            metrics={name: self._values(self.runs, name) for name in names},
            baseline={name: self._values(self.baselines, name) for name in names},
            comparable=b.comparable,
            completeness=b.completeness,
            reported=self._reported(),
            deviations=deviations(self.runs[0].method),
            controls={
                title: {name: self._values(runs, name) for name in names}
                for title, runs in self.control_runs.items()
            },
            per_class={
                "classes": [c for c, there in zip(b.query.classes, classes, strict=True) if there],
                "queries": [int(n) for n in self._queries_per_class()[classes]],
                "R@1": np.round(self._per_class(self.runs)[:, classes], 4).tolist(),
                "baseline R@1": np.round(self._per_class(self.baselines)[:, classes], 4).tolist(),
            },
            params={k: v for k, v in self.settings.flat.items() if k != "record"},
            timing={"training seconds": [round(run.progress.seconds, 1) for run in self.runs]},
            provenance=provenance(self.settings.method, b, self.protocol.device),
        )

    @property
    def _first(self) -> str:
        return f"R@{min(self.protocol.ks)}"

    def _reported(self) -> dict[str, float] | None:
        reported = load_reported(PARAMS / "reported.yaml")
        return reported.numbers(self.benchmark.name, self.settings.method)

    def _verdict_text(self) -> str:
        here, start = (
            self._values(self.runs, self._first),
            self._values(self.baselines, self._first),
        )
        delta = np.mean(here) - np.mean(start)
        better = "better than" if delta > 0 else "worse than" if delta < 0 else "the same as"
        chinese = "高" if delta >= 0 else "低"
        return (
            f"**{self._first} {_mean(here)}** on {self.benchmark.title}, {abs(delta):.2f} points {better} the "
            f"untrained trunk ({_mean(start)}); {len(here)} seeds, last epoch, test classes read once.\n\n"
            f"**{self._first} {_mean(here)}**，比未训练的主干网络（{_mean(start)}）"
            f"{chinese} {abs(delta):.2f} 个百分点；"
            f"{len(here)} 个随机种子，取最后一轮，不在测试集上选择。"
        )

    @staticmethod
    def _values(runs: list[Run], name: str) -> list[float]:
        return [run.evaluation.metrics[name] for run in runs]

    def _queries_per_class(self) -> np.ndarray:
        return np.bincount(
            self.runs[0].evaluation.retrieval.labels.numpy(),
            minlength=len(self.benchmark.query.classes),
        )

    def _per_class(self, runs: list[Run]) -> np.ndarray:
        """R@1 of each test class in percent, [seeds, classes]; NaN where no query could be scored."""
        counts = self._queries_per_class()
        k = min(self.protocol.ks)
        sums = [
            np.bincount(
                run.evaluation.retrieval.labels.numpy(),
                weights=run.evaluation.retrieval.hits[k].numpy(),
                minlength=len(counts),
            )
            for run in runs
        ]
        return 100 * np.stack(sums) / np.where(counts, counts, np.nan)

    def _pair_histogram(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        b = self.benchmark
        gallery_labels = None if b.gallery is None else torch.from_numpy(b.gallery.labels)
        return pair_histograms(
            run.query,
            torch.from_numpy(b.query.labels),
            run.gallery,
            gallery_labels,
            similarity=run.method.similarity,
            bins=80,
        )

    def _gallery_row(
        self, run: Run, kind: str, query: int
    ) -> tuple[str, np.ndarray, list[tuple[np.ndarray, bool]]]:
        images = self.benchmark.query
        searched = self.benchmark.gallery or images
        # One more than shown: without a gallery of its own, the query finds itself.
        other = run.query if run.gallery is None else run.gallery
        nearest = neighbours(
            run.query[query : query + 1], other, 6, similarity=run.method.similarity
        )[1][0]
        kept = [int(i) for i in nearest if run.gallery is not None or int(i) != query][:5]
        label = images.labels[query]
        found = [
            (searched.store[searched.rows[i]], bool(searched.labels[i] == label)) for i in kept
        ]
        return f"{kind}: {images.classes[label][:14]}", images.store[images.rows[query]], found


def source(thing: Callable[..., Any]) -> Code:
    """The source of a library function, as the notebook imports it."""
    return Code(inspect.getsource(thing), language="python")


def _mean(values: list[float]) -> str:
    mean, half = t_interval(values)
    return f"{mean:.2f}" if np.isnan(half) else f"{mean:.2f} ± {half:.2f}"


def _table(rows: dict[str, str]) -> HTML:
    return HTML(_html_table(("", ""), list(rows.items())))


def _html_table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(heads))
    text = frame.to_html(index=False, border=0, justify="left", header=any(heads))
    return text.replace("<table", '<table lang="zh-Hans" style="text-align: left"').replace(
        "<td>", '<td style="text-align: left">'
    )
