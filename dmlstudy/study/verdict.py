"""What a report says of its runs in sentences, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dmlstudy.evaluation import t_interval
from dmlstudy.study.collapse import WORDS, worst
from dmlstudy.study.experiment import Run
from dmlstudy.study.tables import Note, interval, markdown_text, number


def verdict(
    title: str,
    runs: Sequence[Run],
    baselines: Sequence[Run],
    controls: Mapping[str, Sequence[Run]],
) -> str:
    """R@1 beside the untrained trunk's, and every collapse, as Markdown.

    Args:
        title: of the data set.
    """
    here, start = ([run.evaluation.metrics["R@1"] for run in group] for group in (runs, baselines))
    delta = np.mean(here) - np.mean(start)
    points = f"{abs(delta):.2f}"
    trunk = f"未训练的主干网络（{mean_text(start)}）"
    if delta:
        compared = f"{points} points {'better' if delta > 0 else 'worse'} than"
        chinese = f"比{trunk}{'高' if delta > 0 else '低'} {points} 个百分点"
    else:
        compared, chinese = "the same as", f"与{trunk}相同"
    collapse, collapse_chinese = _collapse(runs, controls)
    caveat, also = runs[0].method.caveat() or ("", "")
    return (
        f"**R@1 {mean_text(here)}** on {markdown_text(title)}, {compared} the untrained trunk ({mean_text(start)}); "
        f"{len(here)} seeds, last epoch, nothing chosen on test classes.{collapse}{caveat and f' Note: {caveat}.'}\n\n"
        f"**R@1 {mean_text(here)}**，{chinese}；{len(here)} 个随机种子，取最后一轮，不在测试集上选择。"
        f"{collapse_chinese}{also and f'注意：{also}。'}"
    )


def _collapse(runs: Sequence[Run], controls: Mapping[str, Sequence[Run]]) -> tuple[str, str]:
    """Empty if neither the method nor a control of it collapsed."""
    english, chinese, states = "", "", [run.collapsed for run in runs]
    if (found := worst(states)) != "no":
        word, in_chinese = WORDS[found]
        count = sum(state != "no" for state in states)
        loss, at_a_point = np.mean([run.losses for run in runs], 0)
        cosine = np.mean([run.evaluation.metrics["mean cosine"] for run in runs])
        english = (
            f" **{word.capitalize()}** in {count} of {len(runs)} seeds: mean cosine of random test pairs {cosine:.2f}, "
            f"loss {loss:.3g} ({at_a_point:.3g} if all embeddings were one point)."
        )
        chinese = (
            f"{len(runs)} 个种子中有 {count} 个**{in_chinese}**：随机测试样本对的平均余弦 {cosine:.2f}，"
            f"损失 {loss:.3g}（全部嵌入重合为一点时为 {at_a_point:.3g}）。"
        )
    others = [n for n, group in controls.items() if worst(r.collapsed for r in group) != "no"]
    if others:
        names = "; ".join(map(markdown_text, others))
        english += f" Fully or partly collapsed controls: {names}."
        chinese += f"完全或部分坍缩的对照：{names}。"
    return english, chinese


def epochs_note(runs: Sequence[Run]) -> list[Note]:
    """What choosing the epoch on the tested classes would have gained; nothing where no scores were stored."""
    scores = [[row["R@1"] for row in run.progress.scores] for run in runs]
    if not all(scores):
        return []
    last, best = (np.mean([pick(row) for row in scores]) for pick in (lambda row: row[-1], max))
    values = [number(float(value), 2) for value in (last, best, best - last)]
    english = (
        "R@1 after the last epoch, which counts: {}; after each seed's best epoch by the tested classes, never used: "
        "{}; difference: {} points."
    )
    chinese = "最后一轮（计入结果）的 R@1：{}；按测试类别挑选的最佳一轮（从不使用）：{}；相差 {} 个百分点。"
    return [Note(english.format(*values), chinese.format(*values))]


def mean_text(values: Sequence[float]) -> str:
    """Mean and 95 % interval over seeds."""
    return interval(*t_interval(values), digits=2)
