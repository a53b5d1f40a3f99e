"""Which library code decides a trained network, as a short hash: an edited loss never meets an old checkpoint."""

from __future__ import annotations

import ast
import hashlib
import symtable
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from dmlstudy.methods import METHODS, find_method
from dmlstudy.project import PROJECT

LIBRARY = PROJECT / "dmlstudy"
# Every run passes through these; what the method's class uses comes on top.
COMMON = ("training", "networks", "data", "methods.base")
# They list all methods, losses and samplers and decide nothing: a name counts where it was imported from.
REGISTRIES = ("methods/__init__.py", "losses/__init__.py", "samplers/__init__.py")
WHOLE = ""  # all names of a file


def code_fingerprint(method: str) -> str:
    """Short hash of the code that trains a method; comments, docstrings and layout do not count.

    It follows the imports inside the library, so that a new method leaves the others' checkpoints valid. Of a file that
    declares methods only what this method uses counts, so that another row there changes nothing either.
    """
    digest = hashlib.sha256()
    for file, names in sorted(_reached(method).items()):
        digest.update(file.relative_to(LIBRARY).as_posix().encode())
        for line in _lines(file, names):
            digest.update(ast.dump(line).encode())
    return digest.hexdigest()[:16]


def training_code(method: str) -> list[Path]:
    """Files of the library that decide what a method's trained network is, in order of their names."""
    return sorted(_reached(method))


def _reached(method: str) -> dict[Path, set[str]]:
    """Those files, and of the ones that declare methods the names that this method uses."""
    declaring = {_file(kind.__module__) for kind in METHODS.values()}
    waiting = [(_file(f"dmlstudy.{part}"), WHOLE) for part in COMMON]
    name: str | None = method
    while name is not None:  # a teacher's code decides its student's weights
        kind = find_method(name)
        waiting.append((_file(kind.__module__), kind.__name__))
        name = kind.teacher[0] if kind.teacher else None
    reached: dict[Path, set[str]] = {}
    while waiting:
        file, used = waiting.pop()
        names = reached.setdefault(file, set())
        used = used if file in declaring else WHOLE
        if used not in names:
            names.add(used)
            waiting += _imported(_lines(file, {used}))
    return reached


def _lines(file: Path, names: set[str]) -> list[ast.stmt]:
    """Statements of a file without docstrings: those that `names` need, and those that bind no name."""
    body = _body(file)
    if WHOLE in names:
        return body
    needed = set[str]()
    grown = names
    while grown != needed:
        needed = grown
        kept = [line for line in body if not _bound(line) or _bound(line) & needed]
        grown = needed | {n.id for line in kept for n in ast.walk(line) if isinstance(n, ast.Name)}
    return [_only(line, needed) for line in kept]


def _only(line: ast.stmt, names: set[str]) -> ast.stmt:
    """An import without the names that are not needed; other statements as they are."""
    if not isinstance(line, ast.ImportFrom):
        return line
    aliases = [alias for alias in line.names if (alias.asname or alias.name) in names]
    return ast.ImportFrom(line.module, aliases, line.level)


@cache
def _bound(line: ast.stmt) -> set[str]:
    """Names that a statement at the top of a file binds."""
    symbols = symtable.symtable(ast.unparse(line), "statement", "exec").get_symbols()
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


def _imported(lines: list[ast.stmt]) -> Iterator[tuple[Path, str]]:
    """Files of the library, and names in them, that statements import, at the top or inside functions."""
    nodes = [node for line in lines for node in ast.walk(line)]
    used = [(ast.unparse(n.value), n.attr) for n in nodes if isinstance(n, ast.Attribute)]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dmlstudy"):
            for alias in node.names:
                local = alias.asname or alias.name
                attributes = {attribute for name, attribute in used if name == local}
                yield from _origin(str(node.module), alias.name, attributes)


def _origin(module: str, name: str, attributes: Iterable[str] = ()) -> Iterator[tuple[Path, str]]:
    """Where `from module import name` leads to: a file and a name in it; `attributes` of it are used."""
    package, inner = _file(module), _file(f"{module}.{name}")
    if _is_registry(package):
        for line in _body(package):
            if isinstance(line, ast.ImportFrom) and name in _bound(line):
                yield from _origin(str(line.module), name)
                return
    if inner.exists() and _is_registry(inner):
        for attribute in attributes:
            yield from _origin(f"{module}.{name}", attribute)
    elif inner.exists():
        yield inner, WHOLE
    if not _is_registry(package) and package.exists() and module != "dmlstudy":
        yield package, name


def _is_registry(file: Path) -> bool:
    return file in [LIBRARY / name for name in REGISTRIES]


def _file(module: str) -> Path:
    """The file of a module of the library by its dotted name; it need not exist."""
    part = "/".join(module.split(".")[1:])
    package = LIBRARY / part / "__init__.py"
    return package if package.exists() else LIBRARY / f"{part}.py"


@cache
def _body(file: Path) -> list[ast.stmt]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(ast.Constant() as docstring), *_]:
                docstring.value = ""
    return tree.body
