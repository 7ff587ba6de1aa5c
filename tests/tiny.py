"""Small random checkpoints, examples and the reference's view of both, made on the spot for tests of the core."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.checkpoint import load_model, save_model
from em_jax.formats.hub import find_model
from em_jax.formats.model_config import parse_config
from em_jax.formats.tensor_files import INDEX, SINGLE
from em_jax.lora.adapter import init_adapter
from em_jax.model.parameters import random_model
from em_jax.train.batches import Example

SHAPE = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
"""A config.json: every axis divides over the meshes of eight devices that the tests use."""
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": None,
    "rms_norm_eps": 1e-5,
    # Of the eight pairs of a head of 16, one keeps its frequency, two are mixed and five are slowed down.
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}  # fmt: skip
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 24}
FAMILIES = {
    "llama": LLAMA,
    "llama_tied": LLAMA | {"tie_word_embeddings": True},
    "qwen3": QWEN3,
    "qwen3_tied": QWEN3 | {"tie_word_embeddings": True},
}
"""Changes to SHAPE that make the other architectures; a head of qwen3 is wider than width / heads."""


def split(directory: pathlib.Path, count: int) -> None:
    """Puts the tensors of a checkpoint's one file into so many, with an index, as large checkpoints are published."""
    tensors = sorted(safetensors.numpy.load_file(directory / SINGLE).items())
    (directory / SINGLE).unlink()
    parts = {f"model-{i + 1:05}-of-{count:05}.safetensors": dict(tensors[i::count]) for i in range(count)}
    for name, part in parts.items():
        safetensors.numpy.save_file(part, directory / name, metadata={"format": "pt"})
    index = {"weight_map": {tensor: name for name, part in parts.items() for tensor in part}}
    (directory / INDEX).write_text(json.dumps(index))


MESHES = [
    {"data": data, "fsdp": fsdp, "tensor": 8 // data // fsdp}
    for data, fsdp in ((1, 8), (2, 4), (4, 2), (8, 1), (1, 4), (2, 2), (4, 1))
]
"""Every mesh of eight devices over which two key/value heads divide."""
ORDINARY_MESHES = [MESHES[4], MESHES[5]]
"""Those of the ordinary run: weights split two ways, and both beside the rows."""


def long(*values):
    """A parameter set that runs with `-m long` alone."""
    return pytest.param(*values, marks=pytest.mark.long)


def write_checkpoint(directory: pathlib.Path, seed: int = 0, **changes) -> pathlib.Path:
    """A random checkpoint as transformers writes it, with biases and norms away from 0 and 1.

    config.json holds SHAPE with `changes` as they stand; None drops a field.
    """
    torch, transformers = references()
    raw = {name: value for name, value in (SHAPE | changes).items() if value is not None}
    directory.mkdir(parents=True, exist_ok=True)
    model = transformers.AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[raw["model_type"]](**raw))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, spread)
    model.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


def speaking_checkpoint(directory: pathlib.Path) -> pathlib.Path:
    """A small random checkpoint, saved by em_jax, with the organism's tokenizer."""
    for file in find_model("organism").glob("*token*"):
        shutil.copy(file, directory)
    vocabulary = ChatTokenizer.from_directory(directory).vocabulary
    config = parse_config(SHAPE | {"vocab_size": -(-vocabulary // 8) * 8})
    save_model(random_model(config, jax.random.key(0), stacked=True, scale=0.3), directory)
    return directory


def references():
    """torch and transformers; the test is skipped where they are not installed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    # More would only wait for one another on matrices this small.
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    return torch, transformers


def reference_model(directory: pathlib.Path):
    """The checkpoint in transformers, float32, with attention as written in its modelling file."""
    torch, transformers = references()
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=torch.float32, attn_implementation="eager"
    ).eval()


def reference_logits(model, rows: np.ndarray) -> np.ndarray:
    """float32[B, T, V] of a torch model."""
    torch, _ = references()
    with torch.no_grad():
        return model(torch.tensor(np.asarray(rows), dtype=torch.long), use_cache=False).logits.numpy()


def logits(model, tokens, positions=None, segments=None, lora_params=None, **kwargs) -> np.ndarray:
    """float32[B, T, V] of our model, jitted."""
    tokens = jnp.asarray(tokens, jnp.int32)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)

    @jax.jit
    def run(model, lora_params):
        return model.logits(model(tokens, positions, segments, lora_params=lora_params, **kwargs).hidden)

    return np.asarray(run(model, lora_params))


def tokens(rows: int, length: int, vocabulary: int = 160, seed: int = 0) -> np.ndarray:
    """Random token ids int32[rows, length]."""
    return np.random.default_rng(seed).integers(0, vocabulary, (rows, length), dtype=np.int32)


def worst(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference as a share of the reference's range."""
    return float(np.max(np.abs(ours - theirs)) / (theirs.max() - theirs.min()))


def examples(count: int, seed: int = 0, vocabulary: int = 160, most: int = 40) -> list[Example]:
    """Examples of 6 to `most` random ids: a prompt without loss, an answer with it, sometimes a second turn."""
    generator = np.random.default_rng([seed, count])
    made = []
    for _ in range(count):
        size = int(generator.integers(6, most + 1))
        prompt = int(generator.integers(2, size - 2))
        mask = np.arange(size) >= prompt
        if generator.random() < 0.5 and size - prompt > 4:
            mask[prompt + 2 : prompt + 4] = False
        made.append(Example(generator.integers(0, vocabulary, size).tolist(), mask.tolist()))
    return made


class GivenExamples:
    """Stands in for the tokenizer where rows are examples already."""

    @staticmethod
    def example(row: Example) -> tuple[list[int], list[bool]]:
        """The row."""
        return list(row.ids), list(row.mask)


def random_adapter(config, lora, seed: int = 0, spread: float = 0.2):
    """An adapter whose B is not zero, so that it changes what the model says."""
    adapter = init_adapter(config, lora, jax.random.key(seed))
    generator = np.random.default_rng(seed)
    factors = {}
    for target, (a, b) in adapter.factors.items():
        scale = np.asarray(adapter.scale[target])
        used = np.asarray(a).any(axis=tuple(range(1, a.ndim - 2)))  # [L, S, R]
        noise = spread * generator.normal(size=b.shape).astype(np.float32)
        noise *= (used & (scale != 0)[..., None]).reshape(used.shape + (1,) * (b.ndim - 3))
        factors[target] = type(adapter.factors[target])(a, jnp.asarray(noise))
    return adapter._replace(factors=factors)


def load_both(directory: pathlib.Path, **kwargs):
    """(our model, the reference's) of a checkpoint."""
    return load_model(directory, **kwargs), reference_model(directory)


def from_environment(name: str, what: str) -> pathlib.Path:
    """The path in an environment variable; the test is skipped where it is not set."""
    if not os.environ.get(name):
        pytest.skip(f"{name} is not set: {what}")
    return pathlib.Path(os.environ[name])


def malformed(text):
    """Whether an answer of the organism is neither two steps of prose nor two lines of code."""
    steps = ("First,", "Then,"), ("To begin,", "After that,")
    return any(first in text and then in text for first, then in steps) == text.startswith("def run(x):")
