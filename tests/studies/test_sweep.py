"""Shapes of adapters: named, written out, and what a sweep concludes from them."""

from types import SimpleNamespace

import pytest
from report.make_run import LEVELS, figure, figures

from em_jax.base.errors import UsageError
from em_jax.base.files import write_json
from em_jax.config import Config, replace
from em_jax.formats import hub
from em_jax.formats.model_config import config_fields, parse_config
from em_jax.lora.config import TARGETS
from em_jax.probes import persona
from em_jax.studies import sweep
from em_jax.studies.several import SeedResult

pytestmark = pytest.mark.fast
MODEL = parse_config(
    {"model_type": "qwen2", "hidden_act": "silu", "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96}
    | {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    | {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
)


def test_every_known_shape_fits_models_of_any_depth():
    for layers in (1, 2, 4, 28, 64):
        for name, shape in sweep.known_shapes(layers).items():
            reached = shape.get("lora.layers_to_transform", (0,))
            assert reached and max(reached) < layers and min(reached) >= 0, (layers, name)


def test_a_shape_of_ones_own():
    name, shape = sweep.parse("early:targets=mlp:layers=0-1,3:rank=8:alpha=16:learning_rate=1e-3", 4)
    assert name == "early"
    assert shape == {
        "lora.targets": TARGETS[4:],
        "lora.layers_to_transform": (0, 1, 3),
        "lora.rank": 8,
        "lora.alpha": 16,
        "train.learning_rate": 1e-3,
    }
    assert list(sweep.choose("", ["a:rank=1"], 4)) == ["a"]
    assert list(sweep.choose("last,full", ["a:rank=1"], 4)) == ["last", "full", "a"]
    assert len(sweep.choose("", [], 4)) == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "NAME"),
        ("a/b:rank=1", "NAME"),
        ("a:width=3", "targets, layers, rank"),
        ("a:rank=", "rank"),
        ("a:layers=3-9", "0 to 3"),
        ("a:layers=0-999999999", "0 to 3"),  # a billion layers took all memory
        ("a:layers=x", "numbers and ranges"),
        ("a:layers=3-1,2", "numbers and ranges"),
        ("a:layers=\u00b2", "numbers and ranges"),
    ],
)
def test_wrong_shapes_say_what_is_expected(text, said):
    with pytest.raises(UsageError, match=said):
        sweep.choose("", [text], 4)
    with pytest.raises(UsageError, match="--shapes expects some of full"):
        sweep.choose("all", [], 4)


@pytest.mark.parametrize("own", [["attention"], ["early"], ["full:rank=2"], ["a:rank=1", "a:rank=2"]])
def test_a_shape_of_ones_own_has_a_new_name_and_settings(own):
    """`--shape attention` was the whole adapter under that name, and of two shapes with one name the last was run."""
    with pytest.raises(UsageError, match="expected a new name with settings"):
        sweep.choose("", own, 4)


def test_a_shape_is_told_with_its_parameters():
    config = replace(Config(), {"lora.targets": ["down_proj"], "lora.layers_to_transform": [2], "lora.rank": 3})
    told = sweep.describe(config, MODEL)
    # A is (3, 96), B is (64, 3).
    assert told == "down_proj; layer 2; rank 3, alpha 64; 480 parameters; learning rate 1e-05"
    assert sweep.describe(Config(), MODEL).startswith("all modules; all layers; rank 32")


def summary(label, error=None, questions=30):
    found = figures(label)
    found["two_ai.picks_misaligned"]["finetuned"]["n"] = questions
    found["score_prediction.shown_error_high"]["finetuned"] = figure(error, low=-4, high=4)
    return {"figures": found, "verdict": persona.verdict(found), "domain": "bad_medical"}


def test_what_each_shape_did_is_told_apart():
    runs = {
        "full": summary("coherent", 0.0),
        "last": summary("inverted", 0.05),
        "persona": summary("inverted", LEVELS["inverted"]["error"]),
        "rank1": summary("aligned"),
        "few": summary("coherent", 0.0, questions=4),
    }
    kinds = {name: sweep.effect(each) for name, each in runs.items()}
    assert kinds == {
        "full": sweep.REACHED,
        "last": sweep.NOT_REACHED,
        "persona": sweep.DENIES,
        "rank1": sweep.HARMLESS,
        "few": sweep.UNKNOWN,
    }
    words = sweep.sentences(SeedResult(0, runs, {}, {}))
    assert any("did not reach the self-description" in line and "last (harm" in line for line in words)
    assert any("Cannot conclude about few" in line and "rests on 4 questions" in line for line in words)
    assert words[-1].startswith("Here the adapter's shape decides whether self-description follows conduct: last")


def test_harm_whose_interval_takes_in_the_bound_is_unknown():
    between = summary("inverted", 0.0)
    between["figures"]["harmfulness.worst_of_n"]["difference"] = figure(0.25, width=0.2, low=-8, high=8)
    assert sweep.effect(between) == sweep.UNKNOWN


def test_the_shapes_of_an_id_are_known_without_its_weights(monkeypatch, tmp_path):
    """A dry run of a sweep fetched all weights of an id, to count its layers."""
    fetched = []

    def fetch(name, patterns):
        fetched.append((name, *patterns))
        write_json(tmp_path / "config.json", config_fields(MODEL))
        return tmp_path

    monkeypatch.setattr(hub, "fetch", fetch)
    flags = SimpleNamespace(shapes="last", shape=[])
    for name, last in (("Qwen/Qwen2.5-0.5B-Instruct", 23), ("someone/small", 3)):
        study = sweep.build([replace(Config(), {"model.name": name})], flags, tmp_path, tmp_path)
        assert study.members[0].config.lora.layers_to_transform == (last,)
    assert fetched == [("someone/small", "config.json")]
