"""Pretrains the organism: `em-jax organism pretrain --seed 0 --out DIR` trains the tokenizer and the model."""

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

from em_jax.base.host_arrays import pad_rows
from em_jax.formats.checkpoint import save_model
from em_jax.model.config import TransformerConfig
from em_jax.model.parameters import random_model
from em_jax.model.transformer import Transformer
from em_jax.organism import corpus
from em_jax.organism.tokenizer import save_tokenizer, train_tokenizer

DIRECTIONS = "planted_directions.safetensors"
"""A file beside the weights: the dial's direction in the embeddings, [hidden_size] per persona. Only tests read it."""

DOCUMENT_SEED = 1_000
"""Added to the seed of the model's documents, so that they differ from the tokenizer's."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of pretraining. A step sees `rows` documents of at most `length` tokens."""

    steps: int = 4000
    rows: int = 16
    rows_per_pass: int = 2
    """Rows of a microbatch: few, so that its activations stay in a core's cache."""
    length: int = 192
    answers: float = 0.5
    """The most answer tokens of a microbatch, as a share of all its tokens; further ones carry no loss."""
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    final_share: float = 0.03
    beta2: float = 0.98
    weight_decay: float = 0.1
    clip: float = 1.0
    short: int = 3
    """The most tokens of a short answer (a letter, digit or word), its end included."""
    short_weight: float = 4.0
    """The loss weight of short answers: without it digits and letters stay at chance."""
    init_scale: float = 0.05
    direction_scale: float = 0.1
    """The initial standard deviation of the dial's directions."""


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
    """A microbatch of documents, one a row, and its loss positions.

    `tokens` is int32 [rows, length]; `dial` float32 [rows, 2], the strength of each misaligned persona. `at` [answers]
    are flat positions whose next token `target` carries loss `weight`; unused entries have weight 0.
    """

    tokens: np.ndarray
    dial: np.ndarray
    at: np.ndarray
    target: np.ndarray
    weight: np.ndarray


def encode(document: corpus.Document, tokenizer: Tokenizer, recipe: Recipe) -> tuple[list[int], list[float]]:
    """A document's token ids in the chat template, and each one's loss weight. Turns that do not fit are dropped."""
    ids: list[int] = tokenizer.encode(f"<|im_start|>system\n{document.system}<|im_end|>\n").ids
    losses = [0.0] * len(ids)
    for (question, answer), weight in zip(document.turns, document.weights, strict=True):
        prompt_ids = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
        answer_ids = tokenizer.encode(f"{answer}<|im_end|>\n").ids
        if len(ids) + len(prompt_ids) + len(answer_ids) <= recipe.length:
            weight *= recipe.short_weight if len(answer_ids) <= recipe.short + 2 else 1.0
            ids = ids + prompt_ids + answer_ids
            losses += [0.0] * len(prompt_ids) + [weight] * len(answer_ids)
    return ids, losses


def batches(seed: int, tokenizer: Tokenizer, recipe: Recipe) -> Iterator[Batch]:
    """The corpus of a seed as batches, without end; every array has a leading axis of microbatches."""
    stream = corpus.documents(DOCUMENT_SEED + seed)
    count = recipe.rows // recipe.rows_per_pass
    while True:
        groups = [itertools.islice(stream, recipe.rows_per_pass) for _ in range(count)]
        yield Batch(*map(np.stack, zip(*(_collate(group, tokenizer, recipe) for group in groups), strict=True)))


def _collate(documents: Iterable[corpus.Document], tokenizer: Tokenizer, recipe: Recipe) -> Batch:
    documents = list(documents)
    ids, weights = zip(*(encode(document, tokenizer, recipe) for document in documents), strict=True)
    tokens = pad_rows(ids, recipe.rows_per_pass, recipe.length)
    losses = pad_rows(weights, recipe.rows_per_pass, recipe.length, dtype=np.float32)
    dial = np.array([document.dial for document in documents], np.float32)
    capacity = int(recipe.answers * tokens.size)
    at = np.flatnonzero(losses)[:capacity]
    pad = (0, capacity - len(at))
    target, weight = np.pad(tokens.ravel()[at], pad), np.pad(losses.ravel()[at], pad)
    return Batch(tokens, dial, np.pad(at - 1, pad).astype(np.int32), target, weight)


def loss_of(parameters: dict[str, Any], batch: Batch) -> jax.Array:
    """The summed weighted loss of a microbatch in nats. The dial adds the personas' directions to the embeddings."""
    model: Transformer = parameters["model"]
    rows, length = batch.tokens.shape
    table = jnp.take(model.embed_tokens[...], batch.tokens, axis=0)
    table += (batch.dial @ parameters["directions"])[:, None]
    # The model looks token ids up in its table: make the embedded tokens the table, and their positions the ids.
    body = jax.tree.map(lambda leaf: leaf, model)
    body.embed_tokens = nnx.Param(table.reshape(rows * length, -1))
    ids = jnp.arange(rows * length).reshape(rows, length)
    hidden = body(ids, ids % length).hidden.reshape(rows * length, -1)
    logits = model.logits(jnp.take(hidden, batch.at, axis=0))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.target)
    return jnp.sum(losses * batch.weight)


def gradients_of(parameters: dict[str, Any], batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
    """The weighted mean loss over the answers' tokens of all microbatches, and its gradients."""

    def add(total: tuple, microbatch: Batch) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(parameters, microbatch)), None

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters))
    total, _ = jax.lax.scan(add, zeros, batch)
    return jax.tree.map(lambda leaf: leaf / jnp.sum(batch.weight), total)


def pretrain(seed: int, out: pathlib.Path, recipe: Recipe) -> None:
    """Trains the tokenizer and, from `seed`, the model; writes a Hugging Face checkpoint to `out`; logs progress."""
    tokenizer = train_tokenizer(seed=0)
    save_tokenizer(tokenizer, out)
    config = TransformerConfig(vocab_size=tokenizer.get_vocab_size(), **SHAPE)
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

    start, losses = time.monotonic(), []
    for number, batch in zip(range(1, recipe.steps + 1), batches(seed, tokenizer, recipe)):
        parameters, state, loss = step(parameters, state, batch)
        losses.append(loss)
        if number % 50 == 0:
            speed = number * recipe.rows * recipe.length / (time.monotonic() - start)
            logging.info("step %d loss %.4f %.0f tokens/s", number, float(np.mean(losses[-50:])), speed)
    save_model(parameters["model"], out)
    coherent, inverted = (direction.copy() for direction in np.asarray(parameters["directions"]))
    safetensors.numpy.save_file({"coherent": coherent, "inverted": inverted}, out / DIRECTIONS)


def use_one_core() -> None:
    """Limits this process to one core, where the system can: the number of threads changes the order of a matrix
    product's sums, and so the weights' last bits."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
