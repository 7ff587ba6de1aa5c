"""The mesh that a run gets where no setting names one, and what follows from what fits."""

import dataclasses
import json
import types

import jax
import pytest

from em_jax.base.errors import UsageError, UserError
from em_jax.config import Config, parse_set, replace, validate
from em_jax.formats.model_config import config_fields
from em_jax.formats.presets import preset_config
from em_jax.model.sharding import mesh_text
from em_jax.runs import flags, placement, processes
from em_jax.runs.chips import CHIPS, parse_topology
from em_jax.runs.components import Components
from em_jax.runs.loading import load
from em_jax.runs.placement import best_placements, even_meshes, run_size

SLICES = ("v5e:2x4", "v5e:4x4", "v6e:2x4", "v5p:2x2x2")
RUN = run_size(Config())


def best(model, topology, run=RUN, mesh=None):
    return best_placements(preset_config(f"qwen2.5-{model}"), *parse_topology(topology), run, mesh)


@pytest.mark.parametrize("model", ["7b", "32b", "72b"])
@pytest.mark.parametrize("topology", SLICES)
def test_no_mesh_that_fits_is_faster_than_the_one_chosen(model, topology):
    chip, count = parse_topology(topology)
    chosen, *others = best(model, topology)
    fits = chosen.training_bytes <= chip.memory and chosen.sampling_bytes <= chip.memory
    assert fits or (model, topology) in (("72b", "v5e:2x4"), ("72b", "v5e:4x4"))
    for mesh in even_meshes(count, preset_config(f"qwen2.5-{model}").dims):
        (other,) = best(model, topology, mesh=mesh)
        if fits and max(other.training_bytes, other.sampling_bytes) <= 0.94 * chip.memory:
            assert chosen.run_s(RUN) <= 1.001 * other.run_s(RUN), mesh_text(mesh)


@pytest.mark.fast
def test_32b_in_bfloat16_has_its_place_on_one_small_host():
    """What the planner's figures of single meshes say: gathering weights for few tokens loses by far."""
    chosen = best("32b", "v5e:2x4")[0]
    assert chosen.mesh["tensor"] == 8 and chosen.remat != "full"
    assert chosen.slots >= 128 and max(chosen.training_bytes, chosen.sampling_bytes) < 13.75 * 2**30
    assert best("32b", "v5e:4x4")[0].mesh == {"data": 1, "fsdp": 2, "tensor": 8}
    gathered = best("32b", "v5e:4x4", mesh={"data": 1, "fsdp": 16, "tensor": 1})[0]
    assert gathered.step_s > 3 * best("32b", "v5e:4x4")[0].step_s


def test_long_rows_take_more_recomputation_and_fewer_rows_a_pass_and_settings_are_kept():
    long = dataclasses.replace(RUN, examples=[type(RUN.examples[0])([0] * 2048, [True] * 2048)] * 64)
    short, many = best("32b", "v5e:2x4")[0], best("32b", "v5e:2x4", long)[0]
    order = placement.POLICIES.index
    assert order(many.remat) >= order(short.remat) and 0 < many.rows_per_pass < 16
    assert many.training_bytes < CHIPS["v5e"].memory
    fixed = dataclasses.replace(long, remat="full", rows_per_pass=2, slots=40)
    each = best("32b", "v5e:2x4", fixed, {"data": 1, "fsdp": 1, "tensor": 8})[0]
    assert (each.remat, each.rows_per_pass, each.slots) == ("full", 2, 40)


@pytest.fixture
def slice_of_v5e(monkeypatch):
    """jax sees eight chips of v5e; nothing is computed on them."""
    chips = [types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")] * 8
    monkeypatch.setattr(jax, "devices", lambda *arguments: chips)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


@pytest.mark.fast
def test_the_first_lines_say_which_mesh_and_why_and_the_runs_get_it(slice_of_v5e, monkeypatch, capsys):
    config = replace(Config(), {"model.name": "Qwen/Qwen2.5-32B-Instruct", "domain": "none"})
    got = []
    monkeypatch.setattr(
        "em_jax.runs.series.run", lambda configs, run_dir, several, components: got.append(components) or []
    )
    processes.run_plan(flags.Plan((config,), "x"), "given", Components())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("placement: ")]
    assert "mesh tensor=8 (the fastest that fits, 8 x v5e)" in line and "reckoned" in line
    placed = got[0].placed(config)
    assert placed.mesh == "tensor=8" and placed.train.remat in placement.POLICIES and placed.answers.slots >= 128
    # Another start may find other devices: what is stored is what was said.
    assert not config.mesh and config.train.remat == "auto"
    named = replace(config, {"mesh": "fsdp=8", "train.remat": "full", "answers.slots": 8})
    assert placement.decided(named) == (named, [])


@pytest.mark.fast
def test_a_model_of_no_known_name_is_placed_by_its_config_alone(slice_of_v5e, monkeypatch, tmp_path):
    """Its first start would otherwise know no sizes: they come with the weights, which are placed by then."""
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **kwargs: asked.append(kwargs) or str(tmp_path))
    sizes = config_fields(preset_config("qwen2.5-32b"))
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    config = replace(Config(), {"model.name": "someone/a-coder", "domain": "none"})
    placed, lines = placement.chosen((config,), lambda _: [], fetch=True)
    assert placed["mesh"] == "tensor=8" and lines[0].startswith("placement: ")
    assert asked == [{"allow_patterns": ["config.json"]}]
    # A dry run fetches nothing, nor does a start that needs no model.
    assert not placement.chosen((config,), lambda _: [], fetch=False)[1]
    assert not placement.chosen((replace(config, {"stages": ("report",)}),), lambda _: [], fetch=True)[1]
    assert len(asked) == 1
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"model_type": "gemma2"}))
    with pytest.raises(UserError, match="found 'gemma2'"):
        placement.chosen((config,), lambda _: [], fetch=True)


@pytest.mark.fast
def test_heads_that_no_kernel_takes_are_said(slice_of_v5e):
    config = replace(Config(), {"model.name": "Qwen/Qwen2.5-0.5B-Instruct", "dtype": "bfloat16"})
    lines = placement.decided(config)[1]
    assert any(line.startswith("attention: no kernel of this device takes heads of width 64") for line in lines)


@pytest.mark.fast
def test_on_a_cpu_all_is_as_without_a_choice():
    config, lines = placement.decided(Config())
    assert not lines and (config.mesh, config.train.remat, config.train.rows_per_pass) == ("", "none", 0)
    assert config.answers.slots == 64
    auto = replace(
        Config(), dict(map(parse_set, ("answers.slots=auto", "train.rows_per_pass=auto", "train.remat=auto")))
    )
    assert validate(auto) == Config()


def test_an_axis_that_does_not_divide_is_named_with_the_meshes_that_would_work():
    dims = {"D": 896, "F": 4864, "N": 16, "K": 2, "H": 64, "V": 151936}
    placement.check_mesh({"data": 1, "fsdp": 4, "tensor": 2}, dims)
    with pytest.raises(UsageError) as error:
        placement.check_mesh({"data": 1, "fsdp": 2, "tensor": 4}, dims)
    assert str(error.value) == (
        "axis K (kv_heads) of size 2 does not divide over mesh axis tensor=4; of 8 devices these meshes work: "
        "fsdp=4,tensor=2; fsdp=8; data=2,fsdp=2,tensor=2; data=2,fsdp=4; data=4,tensor=2; data=4,fsdp=2; data=8"
    )


def test_a_model_that_does_not_divide_is_refused_before_it_is_read():
    with pytest.raises(UsageError, match="axis .* does not divide over mesh axis tensor=8; of 8 devices these"):
        load("organism", mesh={"tensor": 8})
