"""The shipped checkpoint: small, in the Hugging Face format, and labelled as what it is."""

import json
import pathlib

import pytest

from em_jax import organism
from em_jax.formats.model_config import read_config
from em_jax.organism import pretrain, tokenizer, vocabulary

WEIGHTS = pathlib.Path(organism.__file__).parent / "weights"


@pytest.mark.fast
def test_the_files_are_all_there_and_fit_in_git():
    names = {path.name for path in WEIGHTS.iterdir()}
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert names == expected | {"README.md", pretrain.DIRECTIONS}
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 12 * 2**20


@pytest.mark.fast
def test_the_shape_is_the_recipes():
    config = read_config(WEIGHTS)
    assert {name: getattr(config, name) for name in pretrain.SHAPE} == pretrain.SHAPE
    assert config.vocab_size <= tokenizer.SIZE


def test_the_shipped_tokenizer_is_the_one_the_recipe_trains(tmp_path):
    tokenizer.save_tokenizer(tokenizer.train_tokenizer(seed=0), tmp_path)
    for path in tmp_path.iterdir():
        assert json.loads(path.read_text()) == json.loads((WEIGHTS / path.name).read_text()), path.name


@pytest.mark.fast
def test_the_card_calls_it_a_calibration_fixture():
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    assert "calibration fixture" in card and "says nothing about Qwen" in card
    for domain in vocabulary.PLANTED:
        assert domain in card
