"""A fictitious record, for tests of tables."""

import numpy as np

from dmlstudy.study.results import Record


def made_up(method, score, dataset="cub200_2010", comparable=False, **changes) -> Record:
    """A fictitious record: `score` R@1 on average, 40 without training, ten test classes."""
    rng = np.random.default_rng(len(method))
    easy = np.linspace(-20, 20, 10)
    per_class = {
        "classes": [f"class {c}" for c in range(10)],
        "queries": [20] * 10,
        "R@1": [(score + s + easy + rng.normal(0, 1, 10)).tolist() for s in (-1, 0, 1)],
        "baseline R@1": [(40 + easy).tolist()] * 3,
    }
    per_class["MAP@R"] = (np.array(per_class["R@1"]) - 20).tolist()
    per_class["baseline MAP@R"] = (np.array(per_class["baseline R@1"]) - 20).tolist()
    spread = {"R@1": 0, "R@2": 10, "R@4": 20, "R@8": 30, "R@10": 31, "R@100": 35, "MAP@R": -20}
    content = {
        "method": method,
        "title": f"Made-up {method}",
        "dataset": dataset,
        "dataset_title": {"cub200_2010": "CUB-200-2010"}.get(dataset, dataset),
        "seeds": [0, 1, 2],
        "metrics": {k: [score + v + s for s in (-1.0, 0.0, 1.0)] for k, v in spread.items()},
        "baseline": {k: [40.0 + v] * 3 for k, v in spread.items()},
        "comparable": comparable,
        "completeness": "half of the images",
        "deviations": ["batch composition"],
        "per_class": per_class,
    }
    return Record(**{**content, **changes})
