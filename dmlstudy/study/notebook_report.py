"""The report of an experiment inside a notebook: each part is one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from IPython.display import Code, DisplayHandle, Image, Markdown, display
from torch import Tensor

from dmlstudy.data import Track
from dmlstudy.evaluation import neighbours, pair_histograms, t_interval
from dmlstudy.methods import citation, deviations, find_method
from dmlstudy.project import PROJECT
from dmlstudy.study import figures, results
from dmlstudy.study.controls import comparisons, controls_table
from dmlstudy.study.experiment import Experiment, Run
from dmlstudy.study.literature import load_reported
from dmlstudy.study.notebooks import assigned_parameters
from dmlstudy.study.params import PARAMS, settings, short_name
from dmlstudy.study.provenance import provenance
from dmlstudy.study.results import PERCENT
from dmlstudy.study.tables import (
    DASH,
    Cell,
    Note,
    Part,
    Table,
    change,
    interval,
    markdown_text,
    number,
    signed,
)


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
        self.first = f"R@{min(self.protocol.ks)}"
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
        for seed in seeds:
            self.baselines.append(self._baseline(seed))
            trained = self.settings.method != "untrained"
            self.runs.append(run(seed) if trained else self.baselines[-1])
            pair = self.runs[-1], self.baselines[-1]
            here, start = (one.evaluation.metrics[self.first] for one in pair)
            print(f"seed {seed}  {self.first} {here:.2f}  (untrained trunk {start:.2f})")
        controlled = seeds[: self.protocol.control_seeds]
        for name, overrides in self.runs[0].method.own_controls().items() if controlled else ():
            print(f"control: {name}")
            self.control_runs[name] = [run(seed, overrides) for seed in controlled]

    def _baseline(self, seed: int) -> Run:
        # Pretrained weights and a PCA head start the same whatever the seed.
        if self.baselines and self.protocol.weights != "none" and self.protocol.head_start == "pca":
            return self.baselines[0]
        return self.experiment.run(seed, method="untrained")

    def curves(self) -> Image:
        """Loss terms over epochs."""
        return figures.training_curves({run.seed: run.progress.history for run in self.runs})

    def table(self) -> Table:
        """Every metric: reported by the paper, here (mean ± 95 % interval over seeds), untrained trunk."""
        reported = self._reported() or {}
        rows: list[list[Cell]] = []
        baselines = _scores(self.baselines)
        for name, here in _scores(self.runs).items():
            start = baselines[name]
            paper = Part(f"{reported[name]:g}" if name in reported else DASH, "paper")
            delta = float(np.mean(here) - np.mean(start))
            # Of what is not in percent, more is not better.
            moved = change(delta, digits=2) if name.startswith(PERCENT) else signed(delta, 2)
            rows.append([name, paper, Part(_mean(here), "ours"), _mean(start), moved])
        gap = max(run.evaluation.tie_gap for run in self.runs)
        left_out = self.runs[0].evaluation.retrieval.excluded
        note = (
            f"R@K is the hit rate in percent. Exact ties move {self.first} by at most "
            f"{number(gap, 2)} points; {left_out} queries without a positive are left out."
        )
        heads = ["metric", "论文 reported", "本研究 here", "未训练 untrained trunk", "Δ"]
        return Table("metrics", heads, rows, notes=[Note(note)], lang="zh-Hans")

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
        here, start = (self._per_class(runs).mean(0) for runs in (self.runs, self.baselines))
        names = self.benchmark.query.classes
        scored = np.flatnonzero(~np.isnan(here))
        worst = scored[np.argsort(here[scored], kind="stable")][:count]
        rows = [(names[c], number(here[c], 2), number(start[c], 2)) for c in worst]
        return Table("worst_classes", ["class", f"{self.first} here", "untrained trunk"], rows)

    def controls(self) -> Table | Markdown:
        """The method beside its controls, on the same seeds."""
        if not self.control_runs:
            return Markdown("*No control was run: this row has none, or `control_seeds` is 0.*")
        place = self.protocol.dataset, self.protocol.fold, self.settings.method
        controls = {name: _scores(runs) for name, runs in self.control_runs.items()}
        compared = comparisons(*place, _scores(self.runs), controls)
        metrics = self.first, "R-precision", "MAP@R", "NMI"
        return controls_table(compared, metrics, digits=2)

    def parameters(self) -> Table:
        """Every parameter of this run."""
        rows = [(k, repr(v)) for k, v in self.settings.flat.items() if k != "record"]
        return Table("parameters", ["", "value"], rows)

    def finish(self) -> None:
        """Fill in the verdict and write the record, the only proof that the run succeeded."""
        if self._verdict:
            self._verdict.update(Markdown(self._verdict_text()))
        if self.protocol.record:
            results.save(self.record(), PROJECT / self.protocol.record)
            print("record written")

    def record(self) -> results.Record:
        """This run's record."""
        b = self.benchmark
        classes = ~np.isnan(self._per_class(self.runs)[0])
        track = self.experiment.realised_track
        untracked = () if track else vars(Track())  # what has no effect is not recorded
        return results.Record(
            method=self.settings.method,
            title=self.method.title,
            dataset=short_name(b.name),
            dataset_title=b.title,
            seeds=list(self.protocol.seeds),
            metrics=_scores(self.runs),
            baseline=_scores(self.baselines),
            comparable=b.comparable,
            completeness=b.completeness,
            reported=self._reported(),
            deviations=deviations(self.runs[0].method),
            controls={title: _scores(runs) for title, runs in self.control_runs.items()},
            per_class={
                "classes": np.array(b.query.classes)[classes].tolist(),
                "queries": self._queries_per_class()[classes].tolist(),
                "R@1": np.round(self._per_class(self.runs)[:, classes], 4).tolist(),
                "baseline R@1": np.round(self._per_class(self.baselines)[:, classes], 4).tolist(),
            },
            params={k: v for k, v in self.settings.flat.items() if k not in ("record", *untracked)},
            timing={"training seconds": [round(run.progress.seconds, 1) for run in self.runs]},
            provenance=provenance(self.settings.method, b, self.protocol.device) | track,
        )

    def _reported(self) -> dict[str, float] | None:
        reported = load_reported(PARAMS / "reported.yaml")
        return reported.numbers(self.benchmark.name, self.settings.method)

    def _verdict_text(self) -> str:
        here, start = (_scores(runs)[self.first] for runs in (self.runs, self.baselines))
        delta = np.mean(here) - np.mean(start)
        points, title = f"{abs(delta):.2f}", markdown_text(self.benchmark.title)
        trunk = f"未训练的主干网络（{_mean(start)}）"
        if delta:
            compared = f"{points} points {'better' if delta > 0 else 'worse'} than"
            chinese = f"比{trunk}{'高' if delta > 0 else '低'} {points} 个百分点"
        else:
            compared, chinese = "the same as", f"与{trunk}相同"
        return (
            f"**{self.first} {_mean(here)}** on {title}, {compared} the untrained trunk ({_mean(start)}); "
            f"{len(here)} seeds, last epoch, test classes read once.\n\n"
            f"**{self.first} {_mean(here)}**，{chinese}；{len(here)} 个随机种子，取最后一轮，不在测试集上选择。"
        )

    def _queries_per_class(self) -> np.ndarray:
        labels = self.runs[0].evaluation.retrieval.labels.numpy()
        return np.bincount(labels, minlength=len(self.benchmark.query.classes))

    def _per_class(self, runs: list[Run]) -> np.ndarray:
        """R@1 of each test class in percent, [seeds, classes]; NaN where no query could be scored."""
        counts, k = self._queries_per_class(), min(self.protocol.ks)
        scored = [run.evaluation.retrieval for run in runs]
        sums = [np.bincount(r.labels.numpy(), r.hits[k].numpy(), len(counts)) for r in scored]
        return 100 * np.stack(sums) / np.where(counts, counts, np.nan)

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


def _mean(values: Sequence[float]) -> str:
    return interval(*t_interval(values), digits=2)


def _scores(runs: list[Run]) -> dict[str, list[float]]:
    """One value per run of every metric."""
    metrics = runs[0].evaluation.metrics
    return {name: [run.evaluation.metrics[name] for run in runs] for name in metrics}
