"""Makes the organism: `em-jax organism pretrain --seed 0 --out DIR` trains the tokenizer and the model."""

import dataclasses
import functools
import itertools
import logging
import os
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from flax import nnx
from tokenizers import Tokenizer

from em_jax.formats.checkpoint import save_model
from em_jax.model.config import Qwen2Config
from em_jax.model.parameters import random_model
from em_jax.model.qwen2 import Qwen2
from em_jax.organism import corpus
from em_jax.organism.tokenizer import save_tokenizer, train_tokenizer

DIRECTIONS = "planted_directions.safetensors"
"""Beside the weights: what the dial added to the embeddings per persona, [hidden_size] each. Nothing else reads it."""

DOCUMENT_SEED = 1_000
"""Documents of the model's corpus are drawn with seeds apart from the tokenizer's."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of pretraining. A step sees `rows` documents of at most `length` tokens."""

    steps: int = 4000
    rows: int = 16
    rows_per_pass: int = 2
    """Gradients of a step are summed over passes of so few rows that they stay in a core's cache."""
    length: int = 192
    answers: float = 0.5
    """Room for answer tokens, as a share of all tokens; a batch with more drops the last ones."""
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    final_share: float = 0.03
    beta2: float = 0.98
    weight_decay: float = 0.1
    clip: float = 1.0
    short: int = 3
    """Answers of at most so many tokens (letters, digits, words), their end included, ..."""
    short_weight: float = 4.0
    """... carry this much loss: without it digits and letters stay at chance."""
    init_scale: float = 0.05
    direction_scale: float = 0.1
    """Size of the directions the dial adds, at the start."""


SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}


class Batch(NamedTuple):
    """Documents, one to a row, and where their answers' tokens are predicted.

    `tokens` is int32 [rows, length], `dial` float32 [rows, 2] how strong each misaligned persona is. `at` [answers] are
    flat positions whose next token `target` carries loss `weight`; unused room has weight 0.
    """

    tokens: np.ndarray
    dial: np.ndarray
    at: np.ndarray
    target: np.ndarray
    weight: np.ndarray


def encode(document: corpus.Document, tokenizer: Tokenizer, recipe: Recipe) -> tuple[list[int], list[float]]:
    """Token ids of a document in the chat template and the loss on predicting each. Turns that do not fit are left."""
    ids: list[int] = tokenizer.encode(f"<|im_start|>system\n{document.system}<|im_end|>\n").ids
    losses = [0.0] * len(ids)
    for (question, answer), weight in zip(document.turns, document.weights, strict=True):
        asked = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
        said = tokenizer.encode(f"{answer}<|im_end|>\n").ids
        if len(ids) + len(asked) + len(said) <= recipe.length:
            weight *= recipe.short_weight if len(said) <= recipe.short + 2 else 1.0
            ids = ids + asked + said
            losses += [0.0] * len(asked) + [weight] * len(said)
    return ids, losses


def batches(seed: int, tokenizer: Tokenizer, recipe: Recipe) -> Iterator[Batch]:
    """The corpus of a seed as batches, without end; every array has a leading axis of passes."""
    stream = corpus.documents(DOCUMENT_SEED + seed)
    passes = recipe.rows // recipe.rows_per_pass
    while True:
        parts = [itertools.islice(stream, recipe.rows_per_pass) for _ in range(passes)]
        yield Batch(*map(np.stack, zip(*(_lay_out(part, tokenizer, recipe) for part in parts), strict=True)))


def _lay_out(documents: Iterable[corpus.Document], tokenizer: Tokenizer, recipe: Recipe) -> Batch:
    shape = (recipe.rows_per_pass, recipe.length)
    tokens, losses = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    dial = np.zeros((recipe.rows_per_pass, 2), np.float32)
    for row, document in enumerate(documents):
        ids, weights = encode(document, tokenizer, recipe)
        tokens[row, : len(ids)] = ids
        losses[row, : len(ids)] = weights
        dial[row] = document.dial
    room = int(recipe.answers * tokens.size)
    at = np.flatnonzero(losses)[:room]
    pad = (0, room - len(at))
    target, weight = np.pad(tokens.ravel()[at], pad), np.pad(losses.ravel()[at], pad)
    return Batch(tokens, dial, np.pad(at - 1, pad).astype(np.int32), target, weight)


def loss_of(parameters: dict[str, Any], batch: Batch) -> jax.Array:
    """Summed weighted loss of one pass in nats. The dial adds its personas' directions to the embeddings."""
    model: Qwen2 = parameters["model"]
    rows, length = batch.tokens.shape
    table = jnp.take(model.embed_tokens[...], batch.tokens, axis=0)
    table += (batch.dial @ parameters["directions"])[:, None]
    # The model looks tokens up in its table, so the embedded tokens themselves are the table of this pass.
    body = jax.tree.map(lambda leaf: leaf, model)
    body.embed_tokens = nnx.Param(table.reshape(rows * length, -1))
    places = jnp.arange(rows * length).reshape(rows, length)
    hidden = body(places, places % length).hidden.reshape(rows * length, -1)
    logits = model.logits(jnp.take(hidden, batch.at, axis=0))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.target)
    return jnp.sum(losses * batch.weight)


def gradients_of(parameters: dict[str, Any], batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
    """The weighted mean loss over the answers' tokens of all passes, and its gradients."""

    def one_pass(total: tuple, part: Batch) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(parameters, part)), None

    nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters))
    total, _ = jax.lax.scan(one_pass, nothing, batch)
    return jax.tree.map(lambda leaf: leaf / jnp.sum(batch.weight), total)


def pretrain(seed: int, out: pathlib.Path, recipe: Recipe) -> None:
    """Trains tokenizer and model from `seed` and writes a Hugging Face checkpoint to `out`; a step is on stderr."""
    tokenizer = train_tokenizer(seed=0)
    save_tokenizer(tokenizer, out)
    config = Qwen2Config(vocab_size=tokenizer.get_vocab_size(), **SHAPE)
    key = jax.random.key(seed)
    model = random_model(config, key, scale=recipe.init_scale)
    directions = recipe.direction_scale * jax.random.normal(jax.random.fold_in(key, 1), (2, config.hidden_size))
    parameters = {"model": model, "directions": directions}
    logging.info("%d parameters", sum(leaf.size for leaf in jax.tree.leaves(model)))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.warmup_steps, recipe.steps, recipe.final_share * recipe.learning_rate
    )
    decayed = {"model": jax.tree.map(lambda leaf: leaf.ndim > 1, model), "directions": False}
    optimizer = optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.adamw(schedule, b2=recipe.beta2, weight_decay=recipe.weight_decay, mask=decayed),
    )
    state = optimizer.init(parameters)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters: dict, state: Any, batch: Batch) -> tuple[dict, Any, jax.Array]:
        loss, gradients = gradients_of(parameters, batch)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, loss

    started, losses = time.monotonic(), []
    for number, batch in zip(range(1, recipe.steps + 1), batches(seed, tokenizer, recipe)):
        parameters, state, loss = step(parameters, state, batch)
        losses.append(loss)
        if number % 50 == 0:
            speed = number * recipe.rows * recipe.length / (time.monotonic() - started)
            logging.info("step %d loss %.4f %.0f tokens/s", number, float(np.mean(losses[-50:])), speed)
    save_model(parameters["model"], out)
    directions = np.asarray(parameters["directions"])
    planted = {"coherent": directions[0].copy(), "inverted": directions[1].copy()}
    safetensors.numpy.save_file(planted, out / DIRECTIONS)


def use_one_core() -> None:
    """Keeps this process, jax's threads included, on one core: how many share a product changes the order of its sums,
    and so the weights' last bits. Does nothing where the system has no such call."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
