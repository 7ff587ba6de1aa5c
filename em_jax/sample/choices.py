"""Log-probabilities of given continuations, all choices of a question in one forward pass.

The choices are branches after a shared prompt: a token of a branch attends to the prompt and to its own branch.
"""

import functools
import itertools
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
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer
from em_jax.sample.batch import pad_rows
from em_jax.sample.decode import forward


class QuestionBatch(NamedTuple):
    """P questions, a row each: the prompt, then every choice without its last token.

    tokens, positions, segments: the row; branches share positions, and `segments` numbers them from 1.
    logit_positions: the indices in the row of the U tokens whose logits are needed.
    pair_index, pair_token: the M (logits, token id) pairs whose log-probabilities are needed; `pair_index`
      points into the U logits.
    """

    tokens: Int[np.ndarray, "P T"]
    positions: Int[np.ndarray, "P T"]
    segments: Int[np.ndarray, "P T"]
    logit_positions: Int[np.ndarray, "P U"]
    pair_index: Int[np.ndarray, "P M"]
    pair_token: Int[np.ndarray, "P M"]


class Question(NamedTuple):
    """A prompt and its choices as token ids."""

    prompt: Sequence[int]
    choices: Sequence[Sequence[int]]

    def row(self) -> Sequence[Sequence[int]]:
        """Its row of each array of a QuestionBatch. The first tokens are all predicted from the prompt's last one."""
        start, branches = len(self.prompt), [choice[:-1] for choice in self.choices]
        tokens = [*self.prompt, *itertools.chain(*branches)]
        positions = [*range(start), *(start + i for branch in branches for i in range(len(branch)))]
        segments = [SHARED] * start + [number for number, branch in enumerate(branches, 1) for _ in branch]
        indices = iter(range(1, len(tokens)))
        pair_index = [index for branch in branches for index in (0, *itertools.islice(indices, len(branch)))]
        return tokens, positions, segments, range(start - 1, len(tokens)), pair_index, [*itertools.chain(*self.choices)]

    def sizes(self) -> tuple[int, int, int]:
        """The lengths T, U and M of its row."""
        tokens, _, _, logit_positions, _, pair_token = self.row()
        return len(tokens), len(logit_positions), len(pair_token)


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
    length, logits, pairs = sizes
    tokens, positions, segments, logit_positions, pair_index, pair_token = zip(*(each.row() for each in questions))
    return QuestionBatch(
        pad_rows(tokens, rows, length),
        pad_rows(positions, rows, length),
        pad_rows(segments, rows, length, fill=PADDING),
        pad_rows(logit_positions, rows, logits),
        pad_rows(pair_index, rows, pairs),
        pad_rows(pair_token, rows, pairs),
    )


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
    tokens, positions, segments = batch[:3]
    output = forward(model, adapter, tokens, adapter_mask, positions, segments=segments, steer=steer, sharding=sharding)
    logits = model.logits(jnp.take_along_axis(output.hidden, batch.logit_positions[:, :, None], axis=1))
    normalizers = jax.nn.logsumexp(logits, axis=-1)
    return jax.vmap(lambda logits, normalizers, index, token: logits[index, token] - normalizers[index])(
        logits, normalizers, batch.pair_index, batch.pair_token
    )


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
