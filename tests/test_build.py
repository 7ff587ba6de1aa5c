"""BUILD.md's pointers lead somewhere, imports go one way, and the core does not grow."""

import ast
import importlib.util
import io
import pathlib
import re
import subprocess
import sys
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parent.parent

CORE = {"model", "lora", "train", "sample"}
CODE_LINES = 1_885
"""The most lines of code that the core may have, with what Llama 3 and Qwen3 do otherwise."""
LINES = 28_333
"""The most lines that em_jax/ may have, tests not counted. The aim of 19,000 is far: every reduction lowers this."""

pytestmark = pytest.mark.fast


ROOMS = {
    "base": set(),
    "untrusted": {"base"},
    "model": {"base"},
    "lora": {"base", "model"},
    "formats": {"base", "untrusted", "model", "lora"},
    "train": {"base", "model", "lora", "formats"},
    "sample": {"base", "model", "lora", "formats"},
    "domains": {"base"},
    "probes": {"base", "untrusted"},
    "report": {"base"},
    "config": {"base", "lora", "train"},
    "organism": {"base", "model", "formats", "sample"},
}
"""Every room below the runs, with the rooms it may import beside itself."""
ROOMS["runs"] = set(ROOMS)
ROOMS |= {room: set(ROOMS) for room in ("studies", "serve", "perf")}
ROOMS["commands"] = set(ROOMS)
ROOMS["launch"] = set(ROOMS) - {"commands"}
ROOMS["__main__"] = {"base", "commands"}
ROOMS["__init__"] = {"base", "runs", "sample"}
ROOT_MODULES = {"__init__", "__main__", "config", "launch"}


def imported(code):
    """The rooms of em_jax that a file imports, at its top or later."""
    found = set(re.findall(r"^\s*(?:from|import) em_jax\.(\w+)", code, re.M))
    for names in re.findall(r"^\s*from em_jax import (.+)", code, re.M):
        found |= {name.split()[0] for name in names.split(",")}
    return found


def code_lines(text):
    """Lines that hold code: not blank, no comment, no docstring."""
    words = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            words |= set(range(token.start[0], token.end[0] + 1)) if token.string else set()
    for node in ast.walk(ast.parse(text)):
        # A docstring, of a name just above it too.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            words -= set(range(node.lineno, node.end_lineno + 1))
    return len(words)


def test_lines_of_code_are_counted_without_words():
    words = ['"""Doc.', "", 'More."""', "", "# why", '"""Of x."""', "", '    """Doc."""']
    assert code_lines("\n".join([*words[:5], "x = 1  # how", words[5]])) == 1
    assert code_lines("\n".join(["def f(", "    a,  # what", "):", words[-1], '    return """', '    a"""'])) == 5


def test_the_core_does_not_grow():
    files = [path for part in sorted(CORE) for path in (ROOT / "em_jax" / part).rglob("*.py")]
    counted = sum(code_lines(path.read_text(encoding="utf-8")) for path in files if "kernels" not in path.parts)
    assert counted <= CODE_LINES, f"{counted} lines: take as many out elsewhere in the core, never raise the number"


def test_every_pointer_of_the_tour_exists():
    tour = (ROOT / "BUILD.md").read_text(encoding="utf-8")
    assert len(tour.splitlines()) <= 150
    text = tour + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    pointers = re.findall(r"`(em_jax/[\w/]+\.py)(?::(\w+))?`", text)
    assert len(pointers) > 20
    for path, name in pointers:
        code = (ROOT / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(class|def) {name}\b|^{name}\b.*=", code, re.M), f"{path}:{name}"


def test_the_reference_of_the_core_is_what_its_docstrings_say():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    stored = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert stored == made.reference(), "docs/api.md is old: run python docs/make_api.py and commit it"
    assert "### Engine.generate\n" in stored and "### attention\n" in stored


def test_the_house_has_few_rooms():
    packages = {path.parent.name for path in (ROOT / "em_jax").glob("*/__init__.py")}
    assert packages | ROOT_MODULES == set(ROOMS) and len(packages) <= 16
    assert {path.stem for path in (ROOT / "em_jax").glob("*.py")} == ROOT_MODULES
    for package in packages:
        code = (ROOT / "em_jax" / package / "__init__.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(code)), f"{package} does not say what it is for"


def test_the_house_does_not_grow():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "em_jax").rglob("*.py"))
    assert lines <= LINES, f"{lines} lines: merge or drop what exceeds its worth, never raise the number"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_go_one_way(room):
    place = ROOT / "em_jax" / room
    for path in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        code = path.read_text(encoding="utf-8")
        unknown = imported(code) - ROOMS[room] - {room}
        assert not unknown, f"{path.relative_to(ROOT)} imports {', '.join(unknown)}, which stands above it"
        if room == "probes":
            assert not re.search(r"^\s*(from|import) (jax|flax)\b", code, re.M), path.name


def test_no_import_goes_in_a_circle():
    """File by file, those that are imported late included."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "em_jax").rglob("*.py")}
    arrows = {}
    for name, path in files.items():
        arrows[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("em_jax"):
                found = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                arrows[name] |= found & set(files)

    def outside():
        reached = set().union(*arrows.values())
        return {name for name, targets in arrows.items() if not targets & set(arrows) or name not in reached}

    while ends := outside():
        arrows = {name: targets for name, targets in arrows.items() if name not in ends}
    assert not arrows, f"these import one another: {', '.join(sorted(arrows))}"


def test_an_import_is_seen_wherever_it_stands():
    code = "from em_jax.runs import run\ndef f():\n    from em_jax import report, launch as l\n"
    assert imported(code) == {"runs", "report", "launch"}


def test_no_name_is_undefined():
    """ruff's check is off, as it takes words in shapes for names; here it is run without those words."""
    arguments = ["-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "concise", "em_jax"]
    found = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True).stdout
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "em_jax").rglob("*.py"))
    words = set(re.findall(r"\w+", " ".join(re.findall(r'(?:Array|np\.ndarray), "([^"]*)"', code))))
    undefined = set(re.findall(r"Undefined name `(\w+)`", found))
    assert "B" in undefined and undefined <= words, undefined - words
