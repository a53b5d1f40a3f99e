# The grid: one job per method and data set. The JSON record is the output, the only proof of success; the executed
# notebook is the log, so that it survives a failure. `python -m dmlstudy study` calls this; on a cluster call
# snakemake itself with an executor plugin, e.g.
#   snakemake --executor slurm -k --config datasets=cub200_2011,sop reports=reports

import sys

from dmlstudy.study.params import short_name

# Short names make paths; folder:PATH has slashes.
DATASETS = {short_name(name): name for name in config.get("datasets", "digits,glyphs").split(",")}
METHODS = config["methods"].split(",") if config.get("methods") else None
REPORTS = config.get("reports", "reports/local")
if METHODS is None:
    from dmlstudy.methods import METHODS
from dmlstudy.study.notebooks import source_notebook


wildcard_constraints:
    dataset=r"[^/]+",
    method=r"[^/]+",


rule all:
    input:
        expand(f"{REPORTS}/{{dataset}}/{{method}}.json", dataset=DATASETS, method=METHODS),


rule run:
    input:
        notebook=lambda wildcards: source_notebook(wildcards.method),
        protocol="params/protocol.yaml",
        dataset=lambda wildcards: f"params/datasets/{DATASETS[wildcards.dataset].partition(':')[0]}.yaml",
        method="params/methods/{method}.yaml",
        code="dmlstudy/methods/{method}.py",
    output:
        f"{REPORTS}/{{dataset}}/{{method}}.json",
    log:
        f"{REPORTS}/{{dataset}}/{{method}}.ipynb",
    params:
        dataset=lambda wildcards: DATASETS[wildcards.dataset],
    threads: 1
    shell:
        "{sys.executable} -m dmlstudy run {wildcards.method} '{params.dataset}' --reports {REPORTS}"
