"""Safetensors in and out: round trips in every dtype, indexed checkpoints, and every bad tensor in one line."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

from em_jax.base.errors import UserError
from em_jax.formats.checkpoint import INDEX, SINGLE, load_model, save_model
from em_jax.formats.model_config import parse_config
from em_jax.model.config import TransformerConfig
from em_jax.model.parameters import random_model
from em_jax.model.sharding import Sharding, make_mesh

UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def config(**changes) -> TransformerConfig:
    return parse_config(tiny.SHAPE | changes)


@functools.cache
def drawn(tied=False):
    """A random model; drawn once, for every weight's draw is a program to compile."""
    return random_model(config(tie_word_embeddings=tied), jax.random.key(0), stacked=True, scale=0.2)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of our own in one file, and its tensors by name."""
    save_model(drawn(), tmp_path)
    return tmp_path, safetensors.numpy.load_file(tmp_path / SINGLE)


def rewrite(directory, *files, index=None):
    """Replaces the checkpoint's tensors by these files of tensors, with an index of what each holds."""
    (directory / SINGLE).unlink(missing_ok=True)
    names = [f"part-{i}.safetensors" for i in range(len(files))] if len(files) > 1 or index is not None else [SINGLE]
    for name, tensors in zip(names, files, strict=True):
        safetensors.numpy.save_file(tensors, directory / name)
    if names != [SINGLE]:
        held = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
        (directory / INDEX).write_text(json.dumps({"weight_map": held | (index or {})}))


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


def refusal(directory, **kwargs) -> str:
    with pytest.raises(UserError) as refused:
        load_model(directory, **kwargs)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_round_trip(dtype, tied, tmp_path):
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), drawn(tied))
    save_model(model, tmp_path)
    assert same(model, load_model(tmp_path, dtype=dtype, stacked=True))
    assert ("lm_head.weight" in safetensors.numpy.load_file(tmp_path / SINGLE)) is not tied
    unrolled = load_model(tmp_path, dtype=dtype)
    assert [leaf.dtype for leaf in leaves(unrolled)] == [jnp.dtype(dtype)] * len(leaves(unrolled))
    save_model(unrolled, tmp_path / "again")
    assert (tmp_path / SINGLE).read_bytes() == (tmp_path / "again" / SINGLE).read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_half_precision_checkpoint_widens_exactly(dtype, checkpoint):
    directory, tensors = checkpoint
    kind = jnp.dtype(dtype)
    rewrite(directory, {name: tensor.astype(kind) for name, tensor in tensors.items()})
    model = load_model(directory)
    expected = tensors["model.embed_tokens.weight"].astype(kind).astype(np.float32)
    assert model.embed_tokens[...].dtype == jnp.float32
    assert np.array_equal(model.embed_tokens[...], expected)


def test_float64_is_narrowed(checkpoint):
    directory, tensors = checkpoint
    rewrite(directory, {name: tensor.astype(np.float64) + 1e-12 for name, tensor in tensors.items()})
    assert np.array_equal(load_model(directory).embed_tokens[...], tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_we_write_transformers_reads(dtype, tmp_path):
    torch, transformers = tiny.references()
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), drawn())
    save_model(model, tmp_path)
    assert (tmp_path / SINGLE).stat().st_mode & 0o777 == 0o644
    reference = transformers.Qwen2ForCausalLM.from_pretrained(str(tmp_path), dtype="auto")
    assert str(reference.dtype) == f"torch.{dtype}"
    rows = tiny.tokens(1, 8)
    wide = load_model(tmp_path)
    assert tiny.worst(tiny.logits(wide, rows), tiny.reference_logits(reference.to(torch.float32), rows)) < 1e-5


def test_many_files_read_like_one(checkpoint):
    directory, _ = checkpoint
    model = load_model(directory)
    tiny.split(directory, 4)
    assert len(list(directory.glob("*.safetensors"))) == 4 and not (directory / SINGLE).exists()
    assert same(model, load_model(directory))


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("stacked", [False, True])
def test_shards_hold_the_same_numbers(sizes, stacked, checkpoint):
    directory, _ = checkpoint
    sharding = Sharding(make_mesh(sizes))
    model = load_model(directory, stacked=stacked, sharding=sharding)
    assert same(model, load_model(directory, stacked=stacked))
    up = (model.layers if stacked else model.layers[0]).up_proj.weight[...]
    assert up.addressable_shards[0].data.size * 8 == up.size * sizes.get("data", 1)


def test_all_bad_tensors_in_one_line(checkpoint):
    directory, tensors = checkpoint
    first = {name: tensor for name, tensor in tensors.items() if name != DOWN}
    first[UP] = first[UP][:-1]
    first["model.layers.0.self_attn.q_proj.bias"] = first["model.layers.0.self_attn.q_proj.bias"].astype(np.int32)
    second = {"model.norm.weight": tensors["model.norm.weight"], "model.layers.0.mlp.gate": np.zeros(3, np.float32)}
    rewrite(directory, first, second)
    said = refusal(directory)
    for part in (
        f"{DOWN} is missing",
        f"{UP} has shape (95, 64), expected (96, 64)",
        "model.layers.0.mlp.gate is not a tensor of this model",
        "model.norm.weight is in more than one file",
        "model.layers.0.self_attn.q_proj.bias is I32, expected one of F32, BF16, F16, F64",
    ):
        assert part in said


def test_a_long_list_is_cut_and_counted(checkpoint):
    directory, tensors = checkpoint
    rewrite(directory, {name: tensor for name, tensor in tensors.items() if "layers" not in name})
    assert "; and 4 more" in refusal(directory)


def test_index_and_files_must_agree(checkpoint):
    directory, tensors = checkpoint
    rest = {name: tensor for name, tensor in tensors.items() if name != DOWN}
    rewrite(
        directory, rest, {DOWN: tensors[DOWN]}, index={UP: "part-1.safetensors", "model.ghost": "part-2.safetensors"}
    )
    (directory / "part-2.safetensors").write_bytes((directory / "part-1.safetensors").read_bytes())
    said = refusal(directory)
    assert f"{UP} is in part-0.safetensors, the index says part-1.safetensors" in said
    assert f"{DOWN} is in more than one file" in said
    assert "model.ghost is in the index, not in part-2.safetensors" in said


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "", "..\\x", 3, ".", ".."]
)
def test_an_index_may_not_point_outside(file, checkpoint):
    directory, tensors = checkpoint
    rewrite(directory, tensors, index={UP: file})
    said = refusal(directory)
    assert UP in said and repr(file) in said and "inside the directory" in said


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {}}', '{"weight_map": [1]}', "{}"])
def test_an_index_that_is_none(content, checkpoint):
    directory, _ = checkpoint
    (directory / SINGLE).unlink()
    (directory / INDEX).write_text(content)
    assert INDEX in refusal(directory)


def test_of_two_sets_of_weights_the_one_file_counts_and_it_is_told(checkpoint, capsys):
    directory, tensors = checkpoint
    whole = load_model(directory)
    one = (directory / SINGLE).read_bytes()
    rewrite(directory, {name: x for name, x in tensors.items() if name != DOWN}, {DOWN: tensors[DOWN] + 1})
    other = load_model(directory)
    assert not same(whole, other) and not capsys.readouterr().err
    (directory / SINGLE).write_bytes(one)
    assert same(load_model(directory), whole)
    assert f"two sets of weights: {SINGLE} is used, {INDEX} is not" in capsys.readouterr().err
    theirs = tiny.reference_model(directory).model.layers[0].mlp.down_proj.weight.detach().numpy()
    assert np.array_equal(theirs, tensors[DOWN.replace("layers.1", "layers.0")])


@pytest.mark.parametrize("name", ["model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_frequencies_that_were_stored_are_ignored(name, checkpoint):
    directory, tensors = checkpoint
    whole = load_model(directory)
    rewrite(directory, tensors | {name.format(i): np.ones(8, np.float32) for i in range(2)})
    assert same(load_model(directory), whole)


def test_files_that_are_none(checkpoint):
    directory, tensors = checkpoint
    (directory / SINGLE).write_bytes(b"\xff" * 64)
    assert "not a readable safetensors file" in refusal(directory)
    (directory / SINGLE).unlink()
    assert f"no {SINGLE}" in refusal(directory)
    rewrite(directory, tensors, index={UP: "gone.safetensors"})
    assert "no gone.safetensors" in refusal(directory)


def test_a_tied_head_must_be_the_embedding(tmp_path):
    save_model(drawn(tied=True), tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / SINGLE)
    table = tensors["model.embed_tokens.weight"]
    rewrite(tmp_path, tensors | {"lm_head.weight": table.copy()})
    assert load_model(tmp_path).lm_head is None
    other = table.copy()
    other[-1, -1] += 1
    rewrite(tmp_path, tensors | {"lm_head.weight": other})
    assert "lm_head.weight differs from the embedding" in refusal(tmp_path)


def test_an_untied_checkpoint_needs_its_head(checkpoint):
    directory, tensors = checkpoint
    del tensors["lm_head.weight"]
    rewrite(directory, tensors)
    assert "lm_head.weight is missing" in refusal(directory)


def test_an_axis_that_does_not_divide_is_named(checkpoint):
    said = refusal(checkpoint[0], sharding=Sharding(make_mesh({"tensor": 8})))
    assert "v_proj.weight: axis K (kv_heads) of size 2 does not divide over mesh axis tensor=8" in said


def test_random_models_do_not_depend_on_the_layout():
    spread = random_model(
        config(), jax.random.key(0), stacked=True, scale=0.2, sharding=Sharding(make_mesh({"fsdp": 4, "tensor": 2}))
    )
    assert same(drawn(), spread)
