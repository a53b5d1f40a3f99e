"""What the study found, in five sentences, English and Chinese, computed from the records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from dmlstudy.evaluation import JUDGED
from dmlstudy.evaluation.uncertainty import rank_correlation
from dmlstudy.study.collapse import WORDS
from dmlstudy.study.ranking import FEW, SAME, STILL, ranking
from dmlstudy.study.results import Record
from dmlstudy.study.tables import Note, number

METRIC = JUDGED[0]


def answer(records: Iterable[Record]) -> list[Note]:
    """Extent, best rows, gains over the untrained trunk, agreement between data sets, collapses: a sentence each."""
    records = [record for record in records if not record.is_old]
    if not records:
        return [Note("No run has finished yet.", "尚无完成的运行。")]
    titles = {r.dataset: r.dataset_title for r in records}
    frames = {name: _methods(records, name) for name in titles}
    return [
        _extent(records, titles),
        _joined([_best(frame, records, titles[name]) for name, frame in frames.items()]),
        _joined([_gains(frame, titles[name]) for name, frame in frames.items()]),
        _agreement(frames, titles),
        _collapses(records),
    ]


def _methods(records: Sequence[Record], dataset: str) -> pd.DataFrame:
    """The ranking's numbers of rows that were trained."""
    data = ranking(records, dataset).data
    return data[~data["method"].isin(STILL)]


def _extent(records: Sequence[Record], titles: dict[str, str]) -> Note:
    methods, networks = len({r.method for r in records}), sum(len(r.seeds) for r in records)
    return Note(
        f"{methods} rows were run under {len(titles)} protocols, {networks} networks in all; nothing "
        "was chosen on test classes.",
        f"共 {methods} 行方法、{len(titles)} 种协议、{networks} 个网络；不在测试类上作任何选择。",
    )


def _best(frame: pd.DataFrame, records: Sequence[Record], title: str) -> Note:
    if frame.empty:
        return Note(f"on {title} nothing was trained", f"{title} 尚无训练")
    names = {r.method: r.title for r in records}
    best = frame.sort_values(f"{METRIC} mean").iloc[-1]
    score = f"{names[best['method']]} ({METRIC} {number(best[f'{METRIC} mean'])})"
    verdicts = frame[f"{METRIC} {SAME}"]
    if (verdicts == FEW).any():
        return Note(
            f"on {title} {score}, with too few seeds to tell it from others",
            f"{title}：{score}，种子过少，无法区分",
        )
    level = int((verdicts == "yes").sum())
    return Note(
        f"on {title} {score}, from which {level} of {len(frame) - 1} other rows cannot be told",
        f"{title}：{score}，其余 {len(frame) - 1} 行中有 {level} 行与之不可区分",
    )


def _gains(frame: pd.DataFrame, title: str) -> Note:
    above = int((frame[f"{METRIC} delta low"] > 0).sum())
    below = int((frame[f"{METRIC} delta high"] < 0).sum())
    return Note(
        f"on {title} {above} of {len(frame)} rows lie above the untrained trunk and {below} below it for sure",
        f"{title} 的 {len(frame)} 行中，{above} 行确定高于、{below} 行确定低于未训练主干",
    )


def _joined(notes: Sequence[Note]) -> Note:
    english = "; ".join(note.en for note in notes)
    return Note(english[0].upper() + english[1:] + ".", "；".join(note.zh for note in notes) + "。")


def _agreement(frames: dict[str, pd.DataFrame], titles: dict[str, str]) -> Note:
    """Rank correlation of the rows' order between every two protocols that share at least six rows."""
    means = {name: frame.set_index("method")[f"{METRIC} mean"] for name, frame in frames.items()}
    found = []
    for a, b in combinations(means, 2):
        shared = means[a].index.intersection(means[b].index)
        rho, low, high = rank_correlation(means[a][shared].tolist(), means[b][shared].tolist())
        if len(shared) >= 6 and not np.isnan(rho):
            found.append((rho, f"{titles[a]} / {titles[b]} {rho:+.2f} [{low:+.2f}, {high:+.2f}]"))
    if not found:
        return Note("No two protocols share six rows yet.", "尚无两种协议共有六行以上。")
    listed = "; ".join(text for _, text in sorted(found))
    return Note(
        f"The order of rows carries over from one protocol to another with these rank correlations: {listed}.",
        f"各协议之间方法次序的秩相关：{listed}。",
    )


def _collapses(records: Sequence[Record]) -> Note:
    groups: dict[str, list[str]] = {"yes": [], "partly": []}
    for record in records:
        if (state := record.collapsed()) != "no":
            groups[state].append(f"{record.title} ({record.dataset_title})")
    english = [f"{WORDS[s][0]}: {', '.join(found)}" for s, found in groups.items() if found]
    chinese = [f"{WORDS[s][1]}：{'、'.join(found)}" for s, found in groups.items() if found]
    if not english:
        return Note("No row collapsed.", "没有任何一行坍缩。")
    text = "; ".join(english)
    return Note(text[0].upper() + text[1:] + ".", "；".join(chinese) + "。")
