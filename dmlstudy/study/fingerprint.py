"""Which library code decides a trained network, as a short hash: an edited loss never meets an old checkpoint."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from dmlstudy.project import PROJECT

LIBRARY = PROJECT / "dmlstudy"
# Every run passes through these; a method's own file, and what it imports, come on top.
COMMON = ("training", "networks", "data", "methods/base")
# They name all methods and all losses, and decide nothing.
REGISTRIES = {LIBRARY / "methods" / "__init__.py", LIBRARY / "losses" / "__init__.py"}


def code_fingerprint(method: str) -> str:
    """Short hash of the code that trains a method; comments, docstrings and layout do not count.

    It follows the imports inside the library, so that a new method leaves the others' checkpoints valid.
    """
    digest = hashlib.sha256()
    for file in training_code(method):
        digest.update(file.relative_to(LIBRARY).as_posix().encode())
        digest.update(_normalised(file).encode())
    return digest.hexdigest()[:16]


def training_code(method: str) -> list[Path]:
    """Files of the library that decide what a method's trained network is, in order of their names."""
    import inspect

    import dmlstudy.methods as mm

    waiting = [_file(part) for part in COMMON] + [Path(inspect.getfile(mm.METHODS[method]))]
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imported(file)
    return sorted(found)


def _file(part: str) -> Path:
    package = LIBRARY / part / "__init__.py"
    return package if package.exists() else LIBRARY / f"{part}.py"


@cache
def _imported(file: Path) -> list[Path]:
    """Library files that a file imports, at its top or inside functions."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dmlstudy."):
            path = (node.module or "").split(".")[1:]
            found.append(_file("/".join(path)))
            # `from package import name`: the name may be a module.
            found += [
                file for a in node.names if (file := _file("/".join([*path, a.name]))).exists()
            ]
    return [path for path in found if path not in REGISTRIES]


@cache
def _normalised(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[0].value.value = ""
    return ast.dump(tree)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
