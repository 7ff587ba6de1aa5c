"""BUILD.md's pointers lead somewhere."""

import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = pytest.mark.fast


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
        "model": {"errors", "jsonfile", "model"},
        "lora": {"errors", "jsonfile", "rundir", "model", "lora"},
        "train": {"errors", "group", "jsonfile", "rundir", "signals", "model", "lora", "train"},
        "sample": {"errors", "jsonfile", "rundir", "runtime", "model", "lora", "sample"},
        "probes": {"errors", "jsonfile", "rundir", "probes"},
    }
    # What everyone may lean on leans on nothing itself.
    allowed |= {leaf: {"errors"} for leaf in ("failures.py", "jsonfile.py", "runtime.py", "signals.py")}
    allowed |= {"rundir.py": {"errors", "failures"}, "group.py": {"errors", "failures", "runtime"}}
    # Errors make what others wrote visible, and so may everyone.
    allowed = {place: known | {"visible"} for place, known in allowed.items()} | {"visible.py": set()}
    for package, known in allowed.items():
        place = ROOT / "em_jax" / package
        for path in place.rglob("*.py") if place.is_dir() else [place]:
            code = path.read_text(encoding="utf-8")
            found = set(re.findall(r"^\s*(?:from|import) em_jax\.(\w+)", code, re.M))
            found |= set(re.findall(r"^\s*from em_jax import (\w+)", code, re.M))
            assert found <= known, f"{path.name} imports {found - known}"
            if package == "probes":
                assert not re.search(r"^\s*(from|import) (jax|flax)\b", code, re.M), path.name
