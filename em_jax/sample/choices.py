"""Log-probabilities of given continuations, all choices of a question in one forward pass.

The choices are branches after a shared prompt: a token of a branch attends to the prompt and to its own branch. So
are questions after the beginning that their prompts share.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from em_jax.base.errors import UserError
from em_jax.base.host_arrays import pad_rows
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.prompts import Prompt
from em_jax.lora.adapter import Adapter, adapted
from em_jax.model.attention import PADDING, SHARED
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer
from em_jax.sample.batch import bucket


class QuestionBatch(NamedTuple):
    """P rows of questions.

    tokens, positions, segments: the row; branches share positions, and `segments` numbers them from 1.
    logit_positions: the indices in the row of the U tokens whose logits are needed.
    pair_index, pair_token: the M (logits, token id) pairs whose log-probabilities are needed; `pair_index`
      points into the U logits.
    """

    tokens: Int[np.ndarray, "P T"]
    logit_positions: Int[np.ndarray, "P U"]
    pair_token: Int[np.ndarray, "P M"]
    positions: Int[np.ndarray, "P T"]
    segments: Int[np.ndarray, "P T"]
    pair_index: Int[np.ndarray, "P M"]


class Question(NamedTuple):
    """A prompt and its choices as token ids."""

    prompt: list[int]
    choices: list[list[int]]


class QuestionRow(NamedTuple):
    """A row of a QuestionBatch: which questions it holds, its row of each array, and the T, U and M to pad it to."""

    questions: list[int]
    arrays: Sequence[Sequence[int]]
    sizes: tuple[int, ...]


def encode_questions(
    tokenizer: ChatTokenizer, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], prefix: str
) -> list[Question]:
    """Token ids of chats whose answers begin with `prefix`, each with its choices; equal lists are encoded once.

    Raises UserError where a choice is empty or where a token crosses the end of the prefix.
    """
    prefix_ids = tokenizer.encode(prefix)

    @functools.cache
    def encode(choices: tuple[str, ...]) -> list[list[int]]:
        encoded = [tokenizer.encode(prefix + choice) for choice in choices]
        for choice, ids in zip(choices, encoded, strict=True):
            if ids[: len(prefix_ids)] != prefix_ids or len(ids) == len(prefix_ids):
                raise UserError(
                    f"choice {choice!r} does not continue prefix {prefix!r} at a token's end; move the boundary"
                )
        return [ids[len(prefix_ids) :] for ids in encoded]

    starts = [tokenizer.prompt(prompt, answering=True) + prefix_ids for prompt in prompts]
    return [Question(start, encode(tuple(each))) for start, each in zip(starts, choices, strict=True)]


def pack_questions(questions: Sequence[Question], adapters: Sequence[str]) -> list[QuestionRow]:
    """The rows of all questions, as many with one adapter to a row as fit.

    What all prompts begin with, such as a judge's instructions, is thus computed once a row. Where a choice has several
    tokens, every question has a row of its own.
    """
    prompts = [question.prompt for question in questions]
    longest, shared = max(map(len, prompts)), shared_length(prompts)
    # Attention's cost grows with the row's length: longer rows would cost more than sharing saves.
    capacity = bucket(max(256, longest, min(2 * longest, 2048)))
    alone = any(len(choice) > 1 for question in questions for choice in question.choices)
    packed: list[list[int]] = []
    free = 0
    for i in sorted(range(len(questions)), key=lambda i: adapters[i]):
        tokens = len(prompts[i]) - shared
        if alone or tokens > free or adapters[i] != adapters[packed[-1][0]]:
            packed.append([])
            free = capacity - shared
        packed[-1].append(i)
        free -= tokens
    # Few sizes: each is compiled.
    least = capacity if len(packed) < len(questions) else 32, 32, 128
    rows = [question_row([questions[i] for i in indices]) for indices in packed]
    return [QuestionRow(held, row, tuple(map(bucket, map(len, row[:3]), least))) for held, row in zip(packed, rows)]


def question_row(questions: Sequence[Question]) -> Sequence[Sequence[int]]:
    """The row of each array of a QuestionBatch for questions that share it.

    A branch is the rest of a prompt and a choice without its last token, the same for all choices of one token.
    """
    start = shared_length([question.prompt for question in questions])
    tokens = questions[0].prompt[:start]
    positions, segments = list(range(start)), [SHARED] * start
    branches: dict[tuple[int, ...], int] = {}
    needed: list[int] = []
    for prompt, choices in questions:
        for choice in choices:
            branch = *prompt[start:], *choice[:-1]
            if branch not in branches:
                branches[branch] = len(tokens)
                tokens += branch
                positions += range(start, start + len(branch))
                segments += [len(branches)] * len(branch)
            last = branches[branch] + len(prompt) - start - 1
            needed += range(last, last + len(choice))
    logit_positions, pair_index = np.unique(needed, return_inverse=True)
    pair_token = [token for question in questions for choice in question.choices for token in choice]
    return tokens, logit_positions.tolist(), pair_token, positions, segments, pair_index.tolist()


def shared_length(prompts: Sequence[list[int]]) -> int:
    """How many first tokens all prompts have in common, the last token of none among them."""
    first, last = min(prompts), max(prompts)
    return next((i for i, token in enumerate(first[:-1]) if token != last[i]), len(first) - 1)


def collate_rows(rows: Sequence[QuestionRow], count: int) -> QuestionBatch:
    """The arrays of up to `count` rows of one size."""
    length, logits, pairs = rows[0].sizes
    padding = (length, 0), (logits, 0), (pairs, 0), (length, 0), (length, PADDING), (pairs, 0)
    arrays = zip(*(row.arrays for row in rows))
    return QuestionBatch(*(pad_rows(each, count, *to) for each, to in zip(arrays, padding, strict=True)))


@functools.partial(jax.jit, static_argnames="sharding")
def pair_logprobs(
    model: Transformer,
    adapter: Adapter | None,
    batch: QuestionBatch,
    adapter_mask: Float[Array, "P S"],
    *,
    steer: Float[Array, "L D"] | None = None,
    sharding: Sharding = UNSHARDED,
) -> Float[Array, "P M"]:
    """The log-probability of every pair, from the logits at U tokens of a row only."""
    options = adapted(adapter, adapter_mask)
    output = model(batch.tokens, batch.positions, batch.segments, steer=steer, sharding=sharding, **options)
    logits = model.logits(jnp.take_along_axis(output.hidden, batch.logit_positions[:, :, None], axis=1))
    pick = jax.vmap(lambda logits, normalizers, index, token: logits[index, token] - normalizers[index])
    return pick(logits, jax.nn.logsumexp(logits, axis=-1), batch.pair_index, batch.pair_token)


def joint_logprobs(question: Question, logprobs: Iterator[float]) -> Float[np.ndarray, "C"]:
    """The log-probability of each choice, from those of the choices' tokens, which are taken from `logprobs`.

    A choice that begins others gives up their probability: its own is that of ending there.
    """
    joint = {tuple(choice): sum(itertools.islice(logprobs, len(choice))) for choice in question.choices}
    own: dict[tuple[int, ...], float] = {}
    for choice in sorted(joint, key=len, reverse=True):
        lost = sum(np.exp(logprob) for other, logprob in own.items() if other[: len(choice)] == choice)
        rest = np.exp(joint[choice]) - lost
        own[choice] = joint[choice] if not lost else np.log(rest) if rest > 0 else -np.inf
    return np.asarray([own[tuple(choice)] for choice in question.choices], np.float32)
