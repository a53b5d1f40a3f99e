"""The four tables of the Chinese summary, with this study's runs beside the reported values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dmlstudy.study.controls import controls_table, recorded_controls
from dmlstudy.study.literature import Paper, Reported, ReportedTable, Row
from dmlstudy.study.ranking import (
    Estimate,
    Link,
    estimate,
    improvement,
    ranking,
)
from dmlstudy.study.results import Record
from dmlstudy.study.tables import DASH, Cell, Note, Part, Table, change, notebook_link

LEGEND = (
    "每格自上而下：论文（原文报告值）/ 本研究（各种子均值 ± 95% 置信区间半宽）/ "
    "Δ（相对未训练主干）；— 表示尚无运行；? 表示未经核实。R@K 单位为 %。"
)


@dataclass(frozen=True)
class Group:
    """Columns that one data set's records fill: the reported one, or a stand-in for it."""

    heading: str
    dataset: str
    records: dict[str, Record]
    official: bool


def summary_tables(
    records: Iterable[Record], reported: Reported, *, link: Link = notebook_link
) -> list[Table]:
    """The four tables: rows, order and columns of the source, one cell per reported value.

    A run stands under the reported data set only if it is comparable; a partial copy of it and its
    stand-ins get columns of their own, and only where there are such runs.

    Args:
        link: (dataset, method) -> where the executed notebook is, seen from the table.
    """
    records = list(records)
    return [_summary_table(table, reported, records, link) for table in reported.tables]


def incomparable(reported: Reported, records: Iterable[Record]) -> Table:
    """What cannot be compared and why: reported rows, groups, and this study's stand-in data."""
    notes = [note._replace(about="Reported rows") for note in (*reported.general, *reported.groups)]
    for paper in reported.papers:
        about = f"{paper.number}. {paper.name}"
        notes += [note._replace(about=about) for note in paper.notes]
    for table in reported.tables:
        about = f"{table.heading}: "
        notes += [n._replace(about=about + row.label) for row in table.rows for n in row.notes]
    notes += list(dict.fromkeys(_data_note(r) for r in records if not _official(reported, r)))
    return Table(
        name="incomparable",
        title="不可比较之处 · What cannot be compared, and why",
        columns=["对象 · what", "why", "原因"],
        rows=[[Part(note.about, "ours"), note.en, note.zh] for note in notes],
        data=pd.DataFrame([(n.about, n.en, n.zh) for n in notes], columns=["what", "why", "原因"]),
        lang="zh-Hans",
    )


def write_tables(
    records: Iterable[Record], reported: Reported, folder: Path, protocol: Iterable[str] = ()
) -> None:
    """Markdown and CSV copies of every table in `folder`, which lies inside the reports' folder."""
    records, protocol = list(records), tuple(protocol)

    def link(dataset: str, method: str) -> str:
        return f"../{notebook_link(dataset, method)}"

    tables = summary_tables(records, reported, link=link)
    datasets = dict.fromkeys(record.dataset for record in records)
    tables += [ranking(records, name, protocol=protocol, link=link) for name in datasets]
    tables.append(controls_table(recorded_controls(records), records=records, link=link))
    tables.append(incomparable(reported, records))
    for table in tables:
        table.write(folder)


def _official(reported: Reported, record: Record) -> bool:
    return record.comparable and any(t.dataset == record.dataset for t in reported.tables)


def _groups(table: ReportedTable, records: list[Record]) -> list[Group]:
    """The official columns always; others only where there are records to fill them."""

    def of(dataset: str, keep: bool | None) -> dict[str, Record]:
        chosen = (r for r in records if r.dataset == dataset and keep in (None, r.comparable))
        return {record.method: record for record in chosen}

    official = Group(table.heading, table.dataset, of(table.dataset, True), official=True)
    others = [(table.dataset, of(table.dataset, False))]
    others += [(name, of(name, None)) for name in table.stand_ins]
    return [official] + [
        Group(_stand_in_heading(next(iter(runs.values()))), name, runs, official=False)
        for name, runs in others
        if runs
    ]


def _stand_in_heading(record: Record) -> str:
    return f"本研究（替代数据：{record.dataset_title}，不可与论文比较）"


def _summary_table(
    table: ReportedTable, reported: Reported, records: list[Record], link: Link
) -> Table:
    groups = _groups(table, records)
    columns = [("", "Method")] + [(g.heading, metric) for g in groups for metric in table.metrics]
    rows: list[list[Cell]] = []
    data: list[dict[str, Any]] = []
    for row in table.rows:
        cells = [_label(row, reported.paper(row.method))]
        for group in groups:
            record = group.records.get(row.method)
            for metric, value in zip(table.metrics, row.values, strict=True):
                printed = value if group.official else None
                cells.append(_cell(printed, record, metric, link))
                place = {"row": row.label, "method": row.method, "dataset": group.dataset}
                data.append(place | _numbers(printed, record, metric, link))
        rows.append(cells)
    return Table(
        name=table.dataset,
        title=table.heading,
        columns=columns,
        rows=rows,
        data=pd.DataFrame(data),
        legend=LEGEND,
        notes=_notes(table, reported, groups),
        lang="zh-Hans",
    )


def _label(row: Row, paper: Paper) -> Cell:
    backbone = "主干不详" if paper.backbone.value == "?" else str(paper.backbone)
    dimension = "维度不详" if paper.dimension.value == "?" else f"维度 {paper.dimension}"
    return Part(row.label), Part(f"{backbone}，{dimension}", "muted")


def _measured(record: Record | None, metric: str) -> tuple[Estimate | None, float | None]:
    if record is None or metric not in record.metrics:
        return None, None
    return estimate(record.metrics[metric]), improvement(record, metric)


def _cell(printed: str | None, record: Record | None, metric: str, link: Link) -> Cell:
    """Reported (in official columns only), here, and the difference to the untrained trunk."""
    reported = () if printed is None else (Part(printed, "paper"),)
    here, delta = _measured(record, metric)
    if record is None or here is None:
        return (*reported, Part(DASH, "muted"))
    moved = Part(DASH, "muted") if delta is None else change(delta, "Δ ")
    return (*reported, Part(str(here), "ours", link(record.dataset, record.method)), moved)


def _numbers(printed: str | None, record: Record | None, metric: str, link: Link) -> dict[str, Any]:
    here, delta = _measured(record, metric)
    return {
        "metric": metric,
        "reported": printed,
        "mean": here and here.mean,
        "half_width": here and here.half_width,
        "seeds": here and here.seeds,
        "delta_untrained": delta,
        "comparable": record and record.comparable,
        "notebook": record and link(record.dataset, record.method),
    }


def _data_note(record: Record) -> Note:
    return Note(
        f"{record.completeness.rstrip('.')}; its numbers may not stand beside published ones.",
        "并非论文所用的完整数据集，数值不可与论文比较。",
        record.dataset_title,
    )


def _notes(table: ReportedTable, reported: Reported, groups: list[Group]) -> list[Note]:
    notes = list(
        dict.fromkeys(_data_note(r) for g in groups if not g.official for r in g.records.values())
    )
    for row in table.rows:
        remarks = (*reported.paper(row.method).notes, *row.notes)
        notes += [remark._replace(about=row.label) for remark in remarks]
    return notes + list(reported.groups)
