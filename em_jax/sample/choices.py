"""Log-probabilities of given continuations, all choices of a question in one forward pass.

The choices are branches after a shared prompt: a token of a branch attends to the prompt and to its own branch.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from em_jax.base.errors import UserError
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.lora.adapter import Adapter
from em_jax.model.attention import PADDING, SHARED
from em_jax.model.qwen2 import Qwen2
from em_jax.model.sharding import UNSHARDED, Sharding


class Question(NamedTuple):
    """A prompt and its choices as token ids."""

    prompt: Sequence[int]
    choices: Sequence[Sequence[int]]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The lengths T, U and M of its row in a QuestionBatch: nothing is predicted from the last token of a choice,
        and all first tokens are predicted from the last one of the prompt."""
        pairs = sum(map(len, self.choices))
        branches = pairs - len(self.choices)
        return len(self.prompt) + branches, branches + 1, pairs


class QuestionBatch(NamedTuple):
    """P questions, a row each: the prompt, then every choice without its last token.

    tokens, positions, segments: the row; branches share positions, and `segments` numbers them from 1.
    logit_positions: the indices in the row of the U tokens whose logits are needed.
    pair_index, pair_token: the M (logits, token id) pairs whose log-probabilities are needed, the former among the U.
    """

    tokens: Int[np.ndarray, "P T"]
    positions: Int[np.ndarray, "P T"]
    segments: Int[np.ndarray, "P T"]
    logit_positions: Int[np.ndarray, "P U"]
    pair_index: Int[np.ndarray, "P M"]
    pair_token: Int[np.ndarray, "P M"]


def encode_question(tokenizer: ChatTokenizer, prompt: Sequence[int], choices: Sequence[str], prefix: str) -> Question:
    """Token ids of a question whose answer begins with `prefix`.

    Raises UserError where a choice is empty or where a token crosses the end of the prefix.
    """
    prefix_ids = tokenizer.encode(prefix) if prefix else []
    choice_ids = []
    for choice in choices:
        ids = tokenizer.encode(prefix + choice)
        if ids[: len(prefix_ids)] != prefix_ids or len(ids) == len(prefix_ids):
            raise UserError(
                f"choice {choice!r} does not continue prefix {prefix!r} at a token's end; move the boundary"
            )
        choice_ids.append(ids[len(prefix_ids) :])
    return Question([*prompt, *prefix_ids], choice_ids)


def collate_questions(questions: Sequence[Question], rows: int, sizes: tuple[int, int, int]) -> QuestionBatch:
    """The arrays of up to `rows` questions, padded to `sizes` (T, U, M)."""
    row, logit, pair = ((rows, size) for size in sizes)
    batch = QuestionBatch(
        tokens=np.zeros(row, np.int32),
        positions=np.zeros(row, np.int32),
        segments=np.full(row, PADDING, np.int32),
        logit_positions=np.zeros(logit, np.int32),
        pair_index=np.zeros(pair, np.int32),
        pair_token=np.zeros(pair, np.int32),
    )
    for b, question in enumerate(questions):
        start = len(question.prompt)
        span = slice(0, start)
        batch.tokens[b, span], batch.positions[b, span], batch.segments[b, span] = question.prompt, range(start), SHARED
        batch.logit_positions[b, 0] = start - 1
        end, logits, pairs = start, 1, 0
        for branch, choice in enumerate(question.choices, 1):
            size = len(choice) - 1
            span, used = slice(end, end + size), slice(logits, logits + size)
            batch.tokens[b, span], batch.segments[b, span] = choice[:-1], branch
            batch.positions[b, span] = range(start, start + size)
            batch.logit_positions[b, used] = range(end, end + size)
            batch.pair_index[b, pairs : pairs + size + 1] = [0, *range(logits, logits + size)]
            batch.pair_token[b, pairs : pairs + size + 1] = choice
            end, logits, pairs = end + size, logits + size, pairs + size + 1
    return batch


@functools.partial(jax.jit, static_argnames="sharding")
def pair_logprobs(
    model: Qwen2,
    adapter: Adapter | None,
    batch: QuestionBatch,
    adapter_mask: Float[Array, "P S"],
    *,
    steer: Float[Array, "L D"] | None = None,
    sharding: Sharding = UNSHARDED,
) -> Float[Array, "P M"]:
    """The log-probability of every pair, from the logits at U tokens of a row only."""
    output = model(
        batch.tokens,
        batch.positions,
        batch.segments,
        lora_params=adapter.lora_params() if adapter else None,
        adapter_mask=adapter_mask,
        steer=steer,
        sharding=sharding,
    )
    logits = model.logits(jnp.take_along_axis(output.hidden, batch.logit_positions[:, :, None], axis=1))
    normalizers = jax.nn.logsumexp(logits, axis=-1)
    token_logits = jax.vmap(lambda logits, index, token: logits[index, token])(
        logits, batch.pair_index, batch.pair_token
    )
    return token_logits - jnp.take_along_axis(normalizers, batch.pair_index, axis=1)


def joint_logprobs(question: Question, logprobs: Float[np.ndarray, "M"]) -> Float[np.ndarray, "C"]:
    """The log-probability of each choice, from those of its tokens.

    A choice that begins others gives up their probability: its own is that of ending there.
    """
    ends = np.cumsum([len(choice) for choice in question.choices])
    joint = {
        tuple(choice): float(np.sum(logprobs[end - len(choice) : end], dtype=np.float64))
        for choice, end in zip(question.choices, ends, strict=True)
    }

    def logprob(choice: tuple[int, ...]) -> float:
        longer = [other for other in joint if _begins(choice, other)]
        # Of "1", "10", "100" the first gives up "10" only, which includes "100" already.
        direct = [other for other in longer if not any(_begins(between, other) for between in longer)]
        lost = sum(np.exp(joint[other]) for other in sorted(direct))
        if not lost:
            return joint[choice]
        rest = np.exp(joint[choice]) - lost
        return np.log(rest) if rest > 0 else -np.inf

    return np.asarray([logprob(tuple(choice)) for choice in question.choices], np.float32)


def _begins(short: tuple[int, ...], long: tuple[int, ...]) -> bool:
    return len(long) > len(short) and long[: len(short)] == short
