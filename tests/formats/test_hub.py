"""What is downloaded of a Hugging Face id, and in which order."""

import json

import huggingface_hub
import pytest
import tiny

from em_jax.base.errors import UserError
from em_jax.formats import hub

pytestmark = pytest.mark.fast
ID = "someone/a-model"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Answers every download with `tmp_path`; returns the patterns that were asked for, each call's."""
    asked = []

    def download(name, allow_patterns):
        assert name == ID
        asked.append(tuple(allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


@pytest.mark.parametrize(
    "fields, why",
    [
        ({"model_type": "gemma3", "text_config": {}}, "found 'gemma3'"),
        (tiny.SHAPE | {"quantization_config": {"load_in_4bit": True}}, "quantised checkpoints are not supported"),
        (None, "no config.json"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_before_its_weights_are_fetched(fields, why, repository, tmp_path):
    if fields:
        (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=why):
        hub.find_model(ID)
    assert repository == [("config.json",)]


def test_the_weights_follow_a_config_that_can_be_read(repository, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.SHAPE | tiny.QWEN3))
    assert hub.find_model(ID) == tmp_path
    assert repository == [("config.json",), hub.FILES]


def test_an_id_that_is_not_there_is_one_line(monkeypatch):
    def download(name, allow_patterns):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match="a-model could not be fetched .*not in the Hugging Face cache.*give a dir"):
        hub.find_model(ID)
