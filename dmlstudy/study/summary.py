"""The four tables of the Chinese summary, with this study's runs beside the reported values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from dmlstudy.study.collapse import MARKS, rule_note
from dmlstudy.study.controls import controls_table, recorded_controls
from dmlstudy.study.literature import Paper, Reported, ReportedTable, Row
from dmlstudy.study.ranking import estimate, improvement, ranking
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


def summary_tables(records: Iterable[Record], reported: Reported) -> list[Table]:
    """The four tables: rows, order and columns of the source, one cell per reported value.

    A run is shown under the reported data set only if it is comparable; a partial copy of it and its
    stand-ins get columns of their own, and only where there are such runs.
    """
    records = list(records)
    return [_summary_table(table, reported, records) for table in reported.tables]


def incomparable(reported: Reported, records: Iterable[Record]) -> Table:
    """What cannot be compared and why: reported rows, groups, and this study's stand-in data."""
    notes = [note._replace(about="Reported rows") for note in (*reported.general, *reported.groups)]
    for paper in reported.papers:
        about = f"{paper.number}. {paper.name}"
        notes += [note._replace(about=about) for note in paper.notes]
    for table in reported.tables:
        about = f"{table.heading}: "
        notes += [n._replace(about=about + row.label) for row in table.rows for n in row.notes]
    others = (r for r in records if not any(_official_in(t, r) for t in reported.tables))
    notes += list(dict.fromkeys(map(_data_note, others)))
    return Table(
        name="incomparable",
        title="不可比较之处 · What cannot be compared, and why",
        columns=["对象 · what", "why", "原因"],
        rows=[[Part(note.about, "ours"), note.en, note.zh] for note in notes],
        data=pd.DataFrame([(n.about, n.en, n.zh) for n in notes], columns=["what", "why", "原因"]),
        lang="zh-Hans",
    )


def write_tables(records: Iterable[Record], reported: Reported, folder: Path) -> None:
    """Markdown and CSV copies of every table in `folder`, which lies inside the reports' folder."""
    records = list(records)
    tables = summary_tables(records, reported)
    tables += [ranking(records, name) for name in dict.fromkeys(r.dataset for r in records)]
    tables.append(controls_table(recorded_controls(records), records=records))
    tables.append(incomparable(reported, records))
    for table in tables:
        table.write(folder)


def _official_in(table: ReportedTable, record: Record) -> bool:
    return record.comparable and record.dataset == table.dataset


def _groups(table: ReportedTable, records: list[Record]) -> list[Group]:
    """The official columns always; others only where there are records to fill them."""
    official = {r.method: r for r in records if _official_in(table, r)}
    groups = [Group(table.heading, table.dataset, official, official=True)]
    for name in (table.dataset, *table.stand_ins):
        others = [r for r in records if r.dataset == name and not _official_in(table, r)]
        if others:
            heading = f"本研究（替代数据：{others[0].dataset_title}，不可与论文比较）"
            groups.append(Group(heading, name, {r.method: r for r in others}, official=False))
    return groups


def _summary_table(table: ReportedTable, reported: Reported, records: list[Record]) -> Table:
    groups = _groups(table, records)
    rows: list[list[Cell]] = []
    data: list[dict[str, Any]] = []
    for row in table.rows:
        rows.append([_label(row, reported.paper(row.method))])
        for group in groups:
            for metric, value in zip(table.metrics, row.values, strict=True):
                printed = value if group.official else None
                cell, numbers = _entry(printed, group.records.get(row.method), metric)
                rows[-1].append(cell)
                place = {"row": row.label, "method": row.method, "dataset": group.dataset}
                data.append(place | numbers)
    return Table(
        name=table.dataset,
        title=table.heading,
        columns=["Method", *((g.heading, metric) for g in groups for metric in table.metrics)],
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


def _entry(printed: str | None, record: Record | None, metric: str) -> tuple[Cell, dict[str, Any]]:
    """A cell (reported, in official columns only; here; difference to the untrained trunk), and its numbers."""
    here = estimate(record.metrics.get(metric, ()) if record else ())
    delta = improvement(record, metric) if record else nan
    link = notebook_link(record.dataset, record.method) if record else None
    reported = () if printed is None else (Part(printed, "paper"),)
    mark = MARKS[record.collapsed()] if record else ""
    measured = Part(str(here) + mark, "ours", link), change(delta, "Δ ")
    cell = (*reported, *(measured if here.seeds else [Part(DASH, "muted")]))
    return cell, {
        "metric": metric,
        "reported": printed,
        **here._asdict(),
        "delta_untrained": delta,
        "comparable": record and record.comparable,
        "notebook": link,
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
    notes += rule_note(MARKS[r.collapsed()] for g in groups for r in g.records.values())
    return notes + list(reported.groups)
