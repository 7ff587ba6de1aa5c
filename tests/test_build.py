"""BUILD.md's pointers lead somewhere, imports go one way, and the core does not grow."""

import ast
import importlib.util
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parent.parent

CORE = {"model", "lora", "train", "sample"}
CODE_LINES = 2737
"""The most lines of code that the core may have. It only ever goes down: the aim is 1,500 (BUILD.md)."""

pytestmark = pytest.mark.fast


def imported(code):
    """The modules and packages of em_jax that a file imports, at its top or later."""
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
    assert counted > CODE_LINES - 50, f"{counted} lines: set CODE_LINES to that, so that they are not spent again"


def test_every_pointer_of_the_tour_exists():
    text = (ROOT / "BUILD.md").read_text(encoding="utf-8")
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


def test_imports_go_one_way():
    """model <- lora <- train, sample; the core knows no run, and probes never import jax."""
    allowed = {
        "model": {"errors", "jsonfile", "template", "tokenizer_limits", "model"},
        "lora": {"errors", "jsonfile", "pattern_limits", "rundir", "model", "lora"},
        "train": {"errors", "group", "jsonfile", "rundir", "signals", "model", "lora", "train"},
        "sample": {"errors", "checkpoint_files", "jsonfile", "rundir", "runtime", "model", "lora", "sample"},
        "probes": {"errors", "jsonfile", "rundir", "probes"},
    }
    # What everyone may lean on leans on nothing itself.
    allowed |= {leaf: {"errors"} for leaf in ("failures.py", "jsonfile.py", "runtime.py", "signals.py")}
    allowed |= {"template.py": {"errors", "template_process"}, "template_process.py": set()}
    allowed |= {
        "pattern_limits.py": set(),
        "tokenizer_limits.py": {"errors", "jsonfile"},
        "checkpoint_files.py": {"errors", "runtime"},
    }
    allowed |= {"rundir.py": {"errors", "failures"}, "group.py": {"errors", "failures", "runtime"}}
    # Errors make what others wrote visible, and so may everyone.
    allowed = {place: known | {"visible"} for place, known in allowed.items()} | {"visible.py": set()}
    for package, known in allowed.items():
        place = ROOT / "em_jax" / package
        for path in place.rglob("*.py") if place.is_dir() else [place]:
            code = path.read_text(encoding="utf-8")
            found = imported(code)
            assert found <= known, f"{path.name} imports {found - known}"
            if package == "probes":
                assert not re.search(r"^\s*(from|import) (jax|flax)\b", code, re.M), path.name


def test_a_run_knows_its_parts_and_no_part_knows_the_run():
    """domains, probes, organism, plan, report <- sources <- run <- begin <- experiment <- series <- launch."""
    chain = ["config", "sources", "run", "begin", "experiment", "series", "launch"]
    later = {name: {*chain[number + 1 :], "flags", "rescore"} for number, name in enumerate(chain[:-1])}
    of_runs = set(chain[2:]) | {"flags", "dry_run", "pace", "tally", "rescore"}
    later |= {"domains": of_runs | CORE | {"sources", "report"}, "organism": of_runs | {"sources", "report", "train"}}
    later |= {"plan": of_runs | {"report"}, "report": of_runs | CORE | {"sources", "organism"}}
    for package, unknown in later.items():
        place = ROOT / "em_jax" / package
        for path in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
            assert not (found := imported(path.read_text(encoding="utf-8")) & unknown), f"{path} imports {found}"
