"""The engine: one object that encodes, generates, reads choices and activations, for notebooks, probes and tests."""

import collections
import functools
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from em_jax.base import host_arrays
from em_jax.base.errors import UserError
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.peft import load_adapter
from em_jax.lora.adapter import Adapter, stack_adapters
from em_jax.model.qwen2 import Qwen2
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.sample.batch import DecodeBatch, SampleRequest, bucket
from em_jax.sample.choices import choice_logprobs, collate_questions, encode_question, pair_logprobs
from em_jax.sample.decode import PrefillOutput, SamplingParams, prefill
from em_jax.sample.sampler import request_key
from em_jax.sample.scheduler import PromptRequest, Scheduler

Prompt = Sequence[Mapping[str, str]]
"""A list of chat messages, {"role", "content"} each."""


class Answer(NamedTuple):
    """A sampled answer: its text without special tokens, its ids without the stop id, "stop" or "length", and the
    summed log-probability of everything drawn (the stop id included) under the model at temperature 1."""

    text: str
    tokens: list[int]
    finish_reason: str
    logprob: float


PASS_TOKENS = 8192
"""Tokens of a forward pass over prompts, on an accelerator."""
CHUNK = 16
"""Tokens that every slot draws in one dispatch."""


class Engine:
    """A model, its tokenizer and any number of adapters, ready to answer.

    `slots` answers (rounded up to what divides) are under way at once, in `num_decode_batches` parts that are seen
    to in turn, and advance `chunk` tokens per dispatch. All three are fixed, and prompts are padded to a few lengths,
    about `pass_tokens` tokens of them to a forward pass, so that an answer is computed by the same programs whatever else is
    asked.
    """

    def __init__(
        self,
        model: Qwen2,
        tokenizer: ChatTokenizer,
        *,
        slots: int = 64,
        chunk: int = CHUNK,
        pass_tokens: int | None = None,
        num_decode_batches: int | None = None,
        sharding: Sharding = UNSHARDED,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.num_decode_batches = num_decode_batches or sharding.side_by_side
        # The rows of a batch divide over the mesh.
        parts = sharding.batch_parts * self.num_decode_batches
        self.slots = -(-slots // parts) * parts
        self.chunk = chunk
        # A CPU is no faster with more at once, and waits for the empty rows of a pass that is not full.
        self.pass_tokens = pass_tokens or (384 if sharding.platform == "cpu" else PASS_TOKENS)
        self.sharding = sharding
        self._adapters: dict[str, Adapter] = {}
        self._stack: Adapter | None = None

    # --- adapters ---

    def add_adapter(self, name: str, path: str | pathlib.Path | Adapter) -> None:
        """Makes an adapter (a PEFT directory, or one in memory) available to every verb under `name`."""
        if name == "base":
            raise UserError('an adapter cannot be named "base": that is the model without one')
        adapter = path if isinstance(path, Adapter) else load_adapter(pathlib.Path(path), self.model.config)[0]
        self._adapters[name] = adapter
        self._stack = stack_adapters(self.model.config, list(self._adapters.values()))
        if (everywhere := self.sharding.named(())) is not None:
            # Once, and not again with every call.
            self._stack = host_arrays.to_devices(self._stack, everywhere)

    @property
    def adapters(self) -> list[str]:
        """The names verbs take: "base" and every adapter's."""
        return ["base", *self._adapters]

    def _names(self, adapter: str | Sequence[str], count: int) -> list[str]:
        names = [adapter] * count if isinstance(adapter, str) else list(adapter)
        if len(names) != count:
            raise UserError(f"expected one adapter per prompt ({count}), found {len(names)}")
        return names

    def _routes(self, adapter: str | Sequence[str], count: int) -> Float[np.ndarray, "B S"] | None:
        """One row per prompt with a 1 at its adapter; all zeros is the base, "default" where no adapter was given."""
        places = {name: place for place, name in enumerate(self._adapters)}
        routes = np.zeros((count, len(places)), np.float32)
        for row, name in enumerate(self._names(adapter, count)):
            if name in places:
                routes[row, places[name]] = 1
            elif name not in ("base", "default"):
                raise UserError(f"no adapter {name!r}; there are {', '.join(self.adapters)}")
        return routes if places else None

    # --- text ---

    def encode(self, messages: Prompt) -> list[int]:
        """Token ids of a chat, the generation prompt included."""
        return self.tokenizer.prompt(messages)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.tokenizer.decode(tokens)

    # --- verbs ---

    def logits(self, tokens: Int[np.ndarray, "B T"], adapter: str = "default") -> Float[np.ndarray, "B T V"]:
        """Float32 next-token logits at every place, for looking closely; the other verbs never hold so many."""
        tokens = np.asarray(tokens, np.int32)
        return host_arrays.to_host(_logits(self.model, self._stack, tokens, self._routes(adapter, len(tokens))))

    def generate(self, prompts: Sequence[Prompt], n: int = 1, *options: Any, **named: Any) -> list[list[Answer]]:
        """`stream`, gathered, with the same options: n answers per prompt."""
        answers: list[list[Any]] = [[None] * n for _ in prompts]
        for index, sample, answer in self.stream(prompts, n, *options, **named):
            answers[index][sample] = answer
        return answers

    def stream(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 600,
        seed: int = 0,
        adapter: str | Sequence[str] = "default",
        done: Collection[tuple[int, int]] = frozenset(),
        steer: Float[np.ndarray, "L D"] | None = None,
    ) -> Iterator[tuple[int, int, Answer]]:
        """Yields (prompt index, sample, Answer) as answers finish; a prompt is prefilled once for all its samples.

        `steer` is added to the residual stream after each layer, at every token of prompt and answer.
        An answer depends on seed, prompt, sample number, adapter and `steer` alone: not on the batch, its slot, or on
        which others are `done` already and left out. Shapes are chosen from all the prompts, done ones included.
        Raises UserError where prompt and answer exceed the model's positions.
        """
        if n < 1 or max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise UserError(
                "expected n >= 1, max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, found "
                f"{n}, {max_new_tokens}, {temperature}, {top_p}"
            )
        ids = [self.encode(prompt) for prompt in prompts]
        if not ids:
            return
        self._check_length(max(map(len, ids)) + max_new_tokens)
        capacity = bucket(max(bucket(max(map(len, ids))), max(map(len, ids)) + max_new_tokens + self.chunk))
        scheduler = self.scheduler(capacity, steer)
        for index, (prompt, name) in enumerate(zip(ids, self._names(adapter, len(ids)), strict=True)):
            samples = [sample for sample in range(n) if (index, sample) not in done]
            prompt_request = self.prompt_request(
                index, prompt, samples, name, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens,
                seed=seed
            )  # fmt: skip
            if samples:
                scheduler.submit(prompt_request)
        drawn = collections.defaultdict(lambda: ([], []))
        while scheduler.busy:
            # The whole step first, so that the next chunk is being drawn while this one is looked at.
            for chunk in sum(scheduler.step(), []):
                which = chunk.request.index, chunk.request.sample
                tokens, logprobs = drawn[which]
                tokens += chunk.tokens
                logprobs += chunk.logprobs
                if chunk.finish_reason:
                    del drawn[which]
                    yield *which, Answer(self.text(tokens), tokens, chunk.finish_reason, sum(logprobs))

    def scheduler(self, capacity: int = 128, steer: Float[np.ndarray, "L D"] | None = None) -> Scheduler:
        """The loop that serves prompts as they are submitted, with the adapters known now."""
        steer = self._steering(steer)
        threads = (
            [ThreadPoolExecutor(1) for _ in range(self.num_decode_batches)] if self.num_decode_batches > 1 else [None]
        )
        running = [
            DecodeBatch(
                self.model, self._stack, self.slots // self.num_decode_batches, capacity, self.tokenizer.stop_ids,
                chunk=self.chunk, steer=steer, sharding=self.sharding, thread=thread
            )
            for thread in threads
        ]  # fmt: skip
        return Scheduler(running, functools.partial(self._prefill, steer=steer), self._rows)

    def prompt_request(
        self,
        index: int,
        ids: Sequence[int],
        samples: Iterable[int],
        adapter: str,
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        seed: int,
        top_logprobs: int = 0,
    ) -> PromptRequest:
        """A prompt and the answers wanted of it as a scheduler takes them, under the number `index`."""
        routes = self._routes(adapter, 1)
        adapter_mask = None if routes is None else routes[0]
        numbers = np.float32(temperature), np.float32(top_p), np.int32(max_new_tokens)
        requests = [
            SampleRequest(
                index,
                sample,
                len(ids),
                SamplingParams(request_key(seed, ids, sample), *numbers, adapter_mask),
                top_logprobs,
            )
            for sample in samples
        ]
        return PromptRequest(ids, adapter_mask, requests)

    def choice_logprobs(
        self,
        prompts: Sequence[Prompt],
        choices: Sequence[str] | Sequence[Sequence[str]],
        prefix: str = "",
        adapter: str | Sequence[str] = "default",
        steer: Float[np.ndarray, "L D"] | None = None,
    ) -> Float[np.ndarray, "B C"]:
        """The joint log-probability that the assistant's turn, begun with `prefix`, goes on with each choice.

        `choices` is one list for all prompts or one of equal length for each. A choice that begins another ("1" and
        "10") gives up the longer one's probability. `steer` as in `stream`.
        """
        shared = bool(choices) and isinstance(choices[0], str)
        lists = [choices] * len(prompts) if shared else list(choices)
        if len(lists) != len(prompts) or len({len(each) for each in lists}) > 1:
            raise UserError("expected one list of choices, or one for every prompt and all of the same length")
        questions = [
            encode_question(self.tokenizer, self.encode(prompt), each, prefix)
            for prompt, each in zip(prompts, lists, strict=True)
        ]
        routes = self._routes(adapter, len(questions))
        steer = self._steering(steer)
        out = np.zeros((len(questions), len(lists[0]) if lists else 0), np.float32)
        groups = collections.defaultdict(list)
        for i, question in enumerate(questions):
            self._check_length(question.capacity())
            places = question.pairs() - len(question.choices) + 1
            groups[bucket(question.tokens()), bucket(places, 8), bucket(question.pairs(), 8)].append(i)
        passes = [
            (shape, members[start : start + self._rows(shape[0])])
            for shape, members in sorted(groups.items())
            for start in range(0, len(members), self._rows(shape[0]))
        ]

        def read(one: tuple[tuple[int, int, int], list[int]]) -> jax.Array:
            (length, places, pairs), members = one
            rows = self._rows(length)
            laid = collate_questions([questions[i] for i in members], rows, length, places, pairs)
            adapter_mask = _padded(routes, members, rows)
            return pair_logprobs(self.model, self._stack, laid, adapter_mask, steer=steer, sharding=self.sharding)

        for (_, members), found in zip(
            passes, host_arrays.side_by_side(read, passes, self.num_decode_batches), strict=True
        ):
            for i, row in zip(members, host_arrays.to_host(found), strict=False):
                out[i] = choice_logprobs(questions[i], row)
        return out

    def activations(
        self, prompts: Sequence[Prompt], layers: Sequence[int], adapter: str | Sequence[str] = "default"
    ) -> list[Float[np.ndarray, "layers T D"]]:
        """The residual stream after each of `layers` (0 is the first), float32, at every token of each prompt."""
        depth = self.model.config.num_hidden_layers
        layers = [layer % depth if -depth <= layer < depth else -1 for layer in layers]
        if -1 in layers or not layers:
            raise UserError(f"activations: layers are 0 to {depth - 1}")
        ids = [self.encode(prompt) for prompt in prompts]
        routes = self._routes(adapter, len(ids))
        out: list[Any] = [None] * len(ids)
        for members in self._groups(ids):
            tokens, _ = self._pad([ids[i] for i in members])
            adapter_mask = _padded(routes, members, len(tokens))
            given = self.model, self._stack, tokens, adapter_mask
            found = host_arrays.to_host(_residuals(*given, layers=tuple(layers), sharding=self.sharding))
            for row, i in enumerate(members):
                out[i] = np.asarray(found[:, row, : len(ids[i])], np.float32)
        return out

    def _steering(self, steer: Float[np.ndarray, "L D"] | None) -> Float[np.ndarray, "L D"] | None:
        """`steer` as float32; None has no leaves as an argument, so that the programs are those without it."""
        if steer is None:
            return None
        shape = self.model.config.num_hidden_layers, self.model.config.hidden_size
        steer = np.asarray(steer, np.float32)
        if steer.shape != shape or not np.isfinite(steer).all():
            raise UserError(f"steer: expected finite numbers of shape [layers, width] {shape}, found {steer.shape}")
        return steer

    # --- shapes ---

    def _rows(self, length: int) -> int:
        return pass_rows(length, self.pass_tokens, self.sharding.batch_parts)

    def _check_length(self, tokens: int) -> None:
        most = self.model.config.max_position_embeddings
        if tokens > most:
            raise UserError(f"prompt and answer need {tokens} positions, the model has {most}; ask for fewer tokens")

    def _groups(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """The indices of prompts of one padded length at a time, as many as go through the model at once."""
        by_length = collections.defaultdict(list)
        for index, prompt in enumerate(ids):
            by_length[bucket(len(prompt))].append(index)
        for length, members in sorted(by_length.items()):
            rows = self._rows(length)
            for start in range(0, len(members), rows):
                yield members[start : start + rows]

    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, "P T"], Int[np.ndarray, "P"]]:
        length = bucket(len(prompts[0]))
        rows = self._rows(length)
        tokens, lengths = np.zeros((rows, length), np.int32), np.ones(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        return tokens, lengths

    def _prefill(self, group: Sequence[PromptRequest], steer: Float[np.ndarray, "L D"] | None) -> PrefillOutput:
        tokens, lengths = self._pad([prompt_request.ids for prompt_request in group])
        routes = (
            None
            if group[0].adapter_mask is None
            else np.stack([prompt_request.adapter_mask for prompt_request in group])
        )
        adapter_mask = _padded(routes, range(len(group)), len(tokens))
        return prefill(self.model, self._stack, tokens, lengths, adapter_mask, steer=steer, sharding=self.sharding)


def pass_rows(length: int, pass_tokens: int, parts: int) -> int:
    """How many rows of this length go through the model at once; they divide over `parts`."""
    return max(1, min(16, pass_tokens // length) // parts) * parts


def _padded(routes: Any, members: Sequence[int], rows: int) -> Any:
    if routes is None:
        return None
    out = np.zeros((rows, routes.shape[1]), np.float32)
    out[: len(members)] = routes[list(members)]
    return out


def _positions(tokens: Any) -> Any:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)


@jax.jit
def _logits(model: Qwen2, adapter: Adapter | None, tokens: Any, adapter_mask: Any) -> Any:
    lora_params = adapter.lora_params() if adapter else None
    return model.logits(model(tokens, _positions(tokens), lora_params=lora_params, adapter_mask=adapter_mask).hidden)


@functools.partial(jax.jit, static_argnames=("layers", "sharding"))
def _residuals(
    model: Qwen2,
    adapter: Adapter | None,
    tokens: Any,
    adapter_mask: Any,
    *,
    layers: tuple[int, ...],
    sharding: Sharding,
) -> Any:
    lora_params = adapter.lora_params() if adapter else None
    positions = _positions(tokens)
    return model(
        tokens,
        positions,
        lora_params=lora_params,
        adapter_mask=adapter_mask,
        return_residuals=layers,
        sharding=sharding,
    ).residuals
