"""Writes docs/api.md, the reference of the core, from the docstrings: python docs/make_api.py

Read from the source, nothing is imported: public modules, classes, functions and methods of em_jax/model, lora, train
and sample, in the order of the files. What has no docstring is not public enough to be listed.
"""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ("model", "lora", "train", "sample")
HEAD = """# The core, by its docstrings

Written by `python docs/make_api.py` from the source; a test holds it to that. How the pieces fit together, in reading
order: [BUILD.md](../BUILD.md). Shape letters: B batch, T query positions, S key positions, D model width, N query
heads, K key/value heads, H head width, F MLP width, V vocabulary, L layers, R LoRA rank.

The object to begin with is the engine: `em_jax.load(model, adapter=None, dtype=None, mesh=None)`.
"""
INDENT = "    "
LONGEST = 110
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for package in CORE:
        for path in sorted((ROOT / "em_jax" / package).rglob("*.py")):
            parts += module(path)
    return "\n".join(parts) + "\n"


def module(path: Path) -> Iterator[str]:
    """The lines of one module; none where it documents nothing but itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    entries = [line for node in tree.body for line in described(node)]
    if entries:
        yield f"## {path.relative_to(ROOT).as_posix()}\n"
        yield f"{ast.get_docstring(tree)}\n"
        yield from entries


def described(node: ast.AST, within: str = "") -> Iterator[str]:
    """A public definition with its docstring, and the public methods of a class."""
    if not isinstance(node, Definition) or node.name.startswith("_") or not ast.get_docstring(node):
        return
    yield f"### {within}{node.name}\n"
    text = ast.get_docstring(node)
    end = "\n" if "\n" in text else ""
    written = textwrap.indent(f'"""{text}{end}"""', INDENT)
    yield "\n".join(["```python", f"{signature(node)}:", written, *fields(node), "```\n"])
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            yield from described(inner, f"{node.name}.")


def signature(node: Definition) -> str:
    """The head of a class or of a function, an argument to a line where it is long."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    head = f"{'async ' * isinstance(node, ast.AsyncFunctionDef)}def {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{head}({ast.unparse(node.args)}){returns}"
    if len(line) <= LONGEST:
        return line
    return "\n".join([f"{head}(", *(f"{INDENT}{part}," for part in arguments(node.args)), f"){returns}"])


def fields(node: Definition) -> list[str]:
    """The public fields of a class; a function has none."""
    body = node.body if isinstance(node, ast.ClassDef) else []
    return [INDENT + ast.unparse(line) for line in body if isinstance(line, ast.AnnAssign) and public(line)]


def arguments(given: ast.arguments) -> Iterator[str]:
    """Each argument as it is written, with what comes between them."""
    places = given.posonlyargs + given.args
    defaults = [None] * (len(places) - len(given.defaults)) + given.defaults
    for number, (argument, default) in enumerate(zip(places, defaults, strict=True), 1):
        yield written(argument, default)
        if number == len(given.posonlyargs):
            yield "/"
    if given.vararg or given.kwonlyargs:
        yield f"*{ast.unparse(given.vararg) if given.vararg else ''}"
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield written(argument, default)
    if given.kwarg:
        yield f"**{ast.unparse(given.kwarg)}"


def written(argument: ast.arg, default: ast.expr | None) -> str:
    """One argument with its annotation and default."""
    if default is None:
        return ast.unparse(argument)
    return f"{ast.unparse(argument)}{' = ' if argument.annotation else '='}{ast.unparse(default)}"


def public(line: ast.AnnAssign) -> bool:
    """Whether a field is for others."""
    return isinstance(line.target, ast.Name) and not line.target.id.startswith("_")


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(reference(), encoding="utf-8")
