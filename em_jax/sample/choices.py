"""Log-probabilities of given continuations, every choice of a question in one forward pass.

The choices are branches over a shared prompt: the prompt's tokens are visible to all, a branch's only to itself.
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

    def tokens(self) -> int:
        """How long the row is: the prompt, and of each choice all but its last token."""
        return len(self.prompt) + sum(len(choice) - 1 for choice in self.choices)

    def capacity(self) -> int:
        """How many positions it takes: branches share theirs."""
        return len(self.prompt) + max(len(choice) for choice in self.choices)

    def pairs(self) -> int:
        """How many (place, token) log-probabilities the choices are made of."""
        return sum(len(choice) for choice in self.choices)


class Branches(NamedTuple):
    """Questions laid out: rows of T, the U places whose logits are needed, and the M (place, token) pairs to read."""

    tokens: Int[np.ndarray, "P T"]
    positions: Int[np.ndarray, "P T"]
    segments: Int[np.ndarray, "P T"]
    places: Int[np.ndarray, "P U"]
    pair_place: Int[np.ndarray, "P M"]
    pair_token: Int[np.ndarray, "P M"]


def encode_question(tokenizer: ChatTokenizer, prompt: Sequence[int], choices: Sequence[str], prefix: str) -> Question:
    """Token ids of a question whose answer begins with `prefix`.

    Raises UserError where a choice is empty or a token would run across the end of the prefix.
    """
    begun = tokenizer.encode(prefix) if prefix else []
    ids = []
    for choice in choices:
        whole = tokenizer.encode(prefix + choice)
        if whole[: len(begun)] != begun or len(whole) == len(begun):
            raise UserError(
                f"choice {choice!r} does not continue prefix {prefix!r} at a token's end; move the boundary"
            )
        ids.append(whole[len(begun) :])
    return Question([*prompt, *begun], ids)


def collate_questions(questions: Sequence[Question], rows: int, length: int, places: int, pairs: int) -> Branches:
    """The arrays of up to `rows` questions."""
    tokens, positions = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    segments = np.full((rows, length), PADDING, np.int32)
    place = np.zeros((rows, places), np.int32)
    pair_place, pair_token = (np.zeros((rows, pairs), np.int32) for _ in range(2))
    for b, question in enumerate(questions):
        start = len(question.prompt)
        tokens[b, :start], positions[b, :start], segments[b, :start] = question.prompt, np.arange(start), SHARED
        place[b, 0] = start - 1
        used, pair, end = 1, 0, start
        for branch, choice in enumerate(question.choices, 1):
            more = len(choice) - 1
            span = slice(end, end + more)
            tokens[b, span], segments[b, span] = choice[:-1], branch
            positions[b, span] = np.arange(start, start + more)
            place[b, used : used + more] = np.arange(end, end + more)
            pair_place[b, pair : pair + more + 1] = [0, *range(used, used + more)]
            pair_token[b, pair : pair + more + 1] = choice
            used, pair, end = used + more, pair + more + 1, end + more
    return Branches(tokens, positions, segments, place, pair_place, pair_token)


@functools.partial(jax.jit, static_argnames="sharding")
def pair_logprobs(
    model: Qwen2,
    adapter: Adapter | None,
    branches: Branches,
    adapter_mask: Float[Array, "P S"] | None,
    *,
    steer: Float[Array, "L D"] | None = None,
    sharding: Sharding = UNSHARDED,
) -> Float[Array, "P M"]:
    """The log-probability of every pair's token at its place, from logits at the U places only."""
    output = model(
        branches.tokens,
        branches.positions,
        branches.segments,
        lora_params=adapter.lora_params() if adapter else None,
        adapter_mask=adapter_mask,
        steer=steer,
        sharding=sharding,
    )
    hidden = jnp.take_along_axis(output.hidden, branches.places[:, :, None], axis=1)
    logits = model.logits(hidden)
    total = jax.nn.logsumexp(logits, axis=-1)
    picked = jax.vmap(lambda logits, place, token: logits[place, token])(
        logits, branches.pair_place, branches.pair_token
    )
    return picked - jnp.take_along_axis(total, branches.pair_place, axis=1)


def choice_logprobs(question: Question, pairs: Float[np.ndarray, "M"]) -> Float[np.ndarray, "C"]:
    """A question's joint log-probabilities; a choice that begins another gives up the longer one's probability."""
    joint, at = [], 0
    for choice in question.choices:
        joint.append(float(np.sum(pairs[at : at + len(choice)], dtype=np.float64)))
        at += len(choice)
    out = []
    for choice, value in zip(question.choices, joint, strict=True):
        longer = [other for other in question.choices if len(other) > len(choice) and _begins(choice, other)]
        # Of "1", "10", "100" the first gives up "10" only, which holds "100" already.
        direct = {tuple(other) for other in longer if not any(_begins(mid, other) for mid in longer if mid != other)}
        taken = sum(np.exp(joint[list(map(tuple, question.choices)).index(other)]) for other in sorted(direct))
        rest = np.exp(value) - taken
        out.append(np.log(rest) if rest > 0 and taken else value if not taken else -np.inf)
    return np.asarray(out, np.float32)


def _begins(short: Sequence[int], long: Sequence[int]) -> bool:
    return len(long) > len(short) and list(long[: len(short)]) == list(short)
