import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from em_jax import config

pytestmark = pytest.mark.fast
ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_first_block_is_two_commands_for_a_fresh_clone():
    lines = re.search(r"```bash\n(.*?)```", README, re.DOTALL)[1].splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(".venv/bin/python -m em_jax.launch --domain bad_medical")
    assert lines[1].endswith(".venv/bin/python -m pytest")
    assert all(line.startswith("python3 -m venv .venv && ") and "-c constraints.txt" in line for line in lines)


def test_the_readme_is_short():
    assert len(README.split()) <= 1000


def test_the_manual_of_settings_is_what_the_command_prints():
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    manual = (ROOT / "docs" / "settings.md").read_text()
    assert manual == made.text(), "python docs/make_settings.py"
    assert set(re.findall(r"^\| `([\w.]+)` \|", manual, re.MULTILINE)) == set(config.setting_types())


def test_every_module_named_exists():
    for name in set(re.findall(r"python -m (em_jax[\w.]*)", README + (ROOT / "docs" / "commands.md").read_text())):
        assert importlib.util.find_spec(name), name


def test_every_dependency_has_an_exact_version():
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in pinned)
    names = {line.partition("==")[0].lower().replace("-", "_") for line in pinned}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["test"]
    assert {re.match(r"[\w-]+", text)[0].lower().replace("-", "_") for text in needed} <= names
