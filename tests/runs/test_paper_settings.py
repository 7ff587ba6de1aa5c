"""Every setting of the preset bears its mark, in the file and in the record; the defaults are that preset."""

import re
from pathlib import Path

import pytest

from em_jax import config as settings
from em_jax.config import Config
from em_jax.runs import paper_settings

pytestmark = pytest.mark.fast
CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
# They change where and when work is done, or name an input.
UNMARKED = {
    "model.scan_layers",
    "train.checkpoint_every",
    "train.keep_adapters",
    "train.remat",
    "judge.url",
    "judge.also",
}
UNMARKED |= {"answers.together", "answers.slots", "judge.concurrency", "judge.max_requests"}


def test_every_setting_has_a_mark_or_needs_none():
    nested = {name for name in settings.setting_types() if "." in name}
    assert nested - set(paper_settings.SETTINGS) == UNMARKED
    assert all(mark.kind in paper_settings.KINDS for mark in paper_settings.SETTINGS.values())
    assert all(text.split(":")[0] in paper_settings.KINDS for text in paper_settings.METHOD.values())


def test_the_preset_and_the_defaults_are_the_marked_values():
    preset = settings.read_toml(CONFIGS / "paper.toml")
    defaults = settings.flatten(Config())
    for name, mark in paper_settings.SETTINGS.items():
        if name != "model.name":
            plain = list(mark.value) if isinstance(mark.value, tuple) else mark.value
            assert preset.pop(name) == plain, name
            assert defaults[name] == mark.value, name
    assert preset == {}


def test_every_line_of_the_preset_says_its_mark():
    text = (CONFIGS / "paper.toml").read_text()
    table = ""
    previous = ""
    for line in text.splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            table = found[1] + "."
        elif found := re.match(r"(\w+) = ", line):
            said = line.partition("  # ")[2] or previous.removeprefix("# ")
            assert said == str(paper_settings.SETTINGS[table + found[1]])
        previous = line
    assert settings.read_toml(CONFIGS / "paper_lr3e5.toml") == {"train.learning_rate": 3e-5}
    assert settings.read_toml(CONFIGS / "paper_t07.toml") == {"answers.temperature": 0.7}


def test_the_record_marks_what_was_changed_as_ours():
    config = settings.replace(Config(), {"train.learning_rate": 3e-5, "model.name": "Qwen/Qwen2.5-32B-Instruct"})
    record = paper_settings.marks(config)
    assert record["settings"]["train.learning_rate"].startswith("ours: changed from 1e-05 (disputed: sources disagree")
    assert record["settings"]["lora.rank"] == "known" and record["settings"]["model.name"] == "known"
    assert record["method"]["chat_template"].startswith("known: the default system message")
