# The grid: one job per method and data set. The JSON record is the output, the only proof of success; the executed
# notebook is the log, so that it survives a failure. `python -m dmlstudy study` calls this; on a cluster call
# snakemake itself with an executor plugin, e.g.
#   snakemake --executor slurm -k --config datasets=cub200_2011,sop reports=reports

import sys
from pathlib import Path

from dmlstudy.methods import METHODS
from dmlstudy.study.grid import inputs
from dmlstudy.study.params import short_name


def listed(key, default):
    """A list of the configuration: as such, or separated by commas on the command line."""
    value = config.get(key) or default
    return value.split(",") if isinstance(value, str) else value


DATASETS = {short_name(name): name for name in listed("datasets", "glyphs")}  # short names make paths
REPORTS = config.get("reports", "reports/local")


wildcard_constraints:
    dataset=r"[^/]+",
    method=r"[^/]+",


rule all:
    input:
        [f"{REPORTS}/{dataset}/{method}.json" for dataset in DATASETS for method in listed("methods", list(METHODS))],


rule run:
    input:
        lambda wildcards: inputs(wildcards.method, DATASETS[wildcards.dataset]),
    output:
        f"{REPORTS}/{{dataset}}/{{method}}.json",
    log:
        f"{REPORTS}/{{dataset}}/{{method}}.ipynb",
    params:
        dataset=lambda wildcards: DATASETS[wildcards.dataset],
    threads: 1
    # Every value is quoted: paths may hold spaces, apostrophes and what a shell would execute.
    shell:
        "{sys.executable:q} -m dmlstudy run {wildcards.method:q} {params.dataset:q} --reports {REPORTS:q}"
