"""The engine: one object that encodes, generates, reads choices and activations, for notebooks, probes and tests."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from em_jax.base import host_arrays
from em_jax.base.errors import UserError
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.peft import load_adapter
from em_jax.formats.prompts import Prompt, Prompts, chat, chats, check_sampling
from em_jax.lora.adapter import Adapter, adapted, shardings_of, stack_adapters
from em_jax.model.kernels.cpu_threads import concurrent_programs
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer
from em_jax.sample.batch import DecodeBatch, SampleRequest, bucket
from em_jax.sample.choices import collate_rows, encode_questions, joint_logprobs, pack_questions, pair_logprobs
from em_jax.sample.decode import PrefillOutput, SamplingParams, decode, init_decode_state, prefill
from em_jax.sample.sampler import request_key
from em_jax.sample.scheduler import Scheduler


class Answer(NamedTuple):
    """A sampled answer.

    text: without special tokens, and without a thought before it.
    tokens: ids without the stop id.
    finish_reason: "stop" or "length".
    logprob: the summed log-probability of all its tokens and the stop id, at temperature 1.
    thought: what the model wrote between the tags of a thought, of which `tokens` are too.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    logprob: float
    thought: str = ""

    def __repr__(self) -> str:
        return f"Answer({self.text!r}, {len(self.tokens)} tokens, {self.finish_reason})"


PASS_TOKENS = 8192
"""Tokens of a forward pass over prompts, on an accelerator."""
CHUNK = 16
"""Tokens sampled in every slot per dispatch."""


class Engine:
    """A model, its tokenizer and any number of adapters, ready to answer.

    `slots` answers are decoded at once, in `num_decode_batches` batches that take turns (rounded up to what divides
    over these and the mesh), and advance by `chunk` tokens per dispatch. Prompts are padded to a few lengths, about
    `pass_tokens` tokens to a forward pass. A slot has room for at least `min_capacity` tokens: calls that need no more
    share one program. All are fixed, so that an answer is computed by the same programs whatever else is asked.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: ChatTokenizer,
        *,
        slots: int = 64,
        chunk: int = CHUNK,
        pass_tokens: int | None = None,
        num_decode_batches: int | None = None,
        min_capacity: int = 32,
        sharding: Sharding = UNSHARDED,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.num_decode_batches = num_decode_batches or concurrent_programs(sharding)
        # The rows of a batch divide over the mesh.
        parts = sharding.batch_shards * self.num_decode_batches
        self.slots = -(-slots // parts) * parts
        self.chunk = chunk
        # More rows make a CPU no faster, and it computes the empty rows of a pass too.
        self.pass_tokens = pass_tokens or (384 if sharding.platform == "cpu" else PASS_TOKENS)
        self.min_capacity = min_capacity
        self.sharding = sharding
        self._adapters: dict[str, Adapter] = {}
        self._stack: Adapter | None = None

    def __repr__(self) -> str:
        config, dtype = self.model.config, self.model.embed_tokens[...].dtype
        model = f"{config.num_hidden_layers} layers of {config.hidden_size}, adapters: {', '.join(self.adapters)}"
        return f"Engine({model}, {dtype} on {self.sharding.size} {self.sharding.platform})"

    # --- adapters ---

    def add_adapter(self, name: str, path: str | pathlib.Path | Adapter) -> None:
        """Makes an adapter (a PEFT directory, or one in memory) available to every method under `name`."""
        if name == "base":
            raise UserError('an adapter cannot be named "base": that is the model without one')
        adapter = path if isinstance(path, Adapter) else load_adapter(pathlib.Path(path), self.model.config)[0]
        self._adapters[name] = adapter
        self._stack = stack_adapters(self.model.config, list(self._adapters.values()))
        # Once, and not again with every call; as decoding reads them, so that they need not be gathered.
        sharding = dataclasses.replace(self.sharding, sampling=True)
        factors = shardings_of(self.model.config, self._stack.factors, sharding)
        places = Adapter(factors, dict.fromkeys(factors, sharding.named(())))
        self._stack = host_arrays.to_devices(self._stack, places)

    @property
    def adapters(self) -> list[str]:
        """The names that methods take as `adapter`: "base" and every adapter's."""
        return ["base", *self._adapters]

    def _names(self, adapter: str | Sequence[str], count: int) -> list[str]:
        names = [adapter] * count if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != count:
            raise UserError(f"expected one adapter per prompt ({count}), found {len(names)}")
        return names

    def _adapter_masks(self, names: Sequence[str]) -> Float[np.ndarray, "B S"]:
        """A row per name with a 1 at its adapter; all 0 is the base, and "default" where no adapter has that name."""
        for name in names:
            if name not in (*self.adapters, "default"):
                raise UserError(f"no adapter {name!r}; there are {', '.join(self.adapters)}")
        masks = [[name == each for each in self._adapters] for name in names]
        return np.array(masks, np.float32).reshape(len(names), len(self._adapters))

    # --- text ---

    def encode(self, messages: str | Prompt) -> list[int]:
        """Token ids of a question or a chat, the generation prompt included."""
        return self.tokenizer.prompt(chat(messages))

    # --- sampling ---

    def generate(
        self,
        prompts: Prompts,
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 600,
        seed: int = 0,
        adapter: str | Sequence[str] = "default",
        steer: Float[np.ndarray, "L D"] | None = None,
    ) -> list[list[Answer]]:
        """Samples n answers per prompt, a list of n for each; as `stream`, all at once.

        `prompts` is a question, a chat (a list of {"role", "content"}), or a list of either; of one prompt the result
        is a list of one too.
        """
        stream = self.stream(prompts, n, temperature, top_p, max_new_tokens, seed, adapter, steer=steer)
        answers = [answer for *_, answer in sorted(stream, key=lambda item: item[:2])]
        return [answers[start : start + n] for start in range(0, len(answers), n)]

    def stream(
        self,
        prompts: Prompts,
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 600,
        seed: int = 0,
        adapter: str | Sequence[str] = "default",
        done: Collection[tuple[int, int]] = frozenset(),
        steer: Float[np.ndarray, "L D"] | None = None,
    ) -> Iterator[tuple[int, int, Answer]]:
        """Yields (prompt index, sample, Answer) as answers finish, except the (prompt index, sample) that are `done`.

        `adapter` is one name for all prompts or a list of one for each. `steer` is added to the residual stream after
        each layer, at every token of prompt and answer. An answer depends on seed, prompt, sample number, adapter and
        `steer` alone, up to rounding (the cache's size follows the longest prompt): not on its batch, slot or order. A
        prompt is prefilled once for all its samples.

        Raises UserError where an argument is out of range or prompt and answer exceed the model's positions.
        """
        check_sampling(n=n, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
        prompts = chats(prompts)
        if not prompts:
            return
        prompt_ids = [self.tokenizer.prompt(prompt) for prompt in prompts]
        # From all prompts, done ones included: the shapes do not depend on what is done.
        longest = max(map(len, prompt_ids)) + max_new_tokens
        self._check_length(longest)
        scheduler = self.scheduler(bucket(max(longest + self.chunk, self.min_capacity)), steer)
        for index, (ids, name) in enumerate(zip(prompt_ids, self._names(adapter, len(prompts)), strict=True)):
            requests = self.sample_requests(
                index, ids, [sample for sample in range(n) if (index, sample) not in done], name,
                temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
            )  # fmt: skip
            if requests:
                scheduler.submit(requests)
        sampled = collections.defaultdict[tuple[int, int], tuple[list[int], list[float]]](lambda: ([], []))
        while scheduler.busy:
            chunks = scheduler.collect()
            # The next chunk is being decoded while this one is read.
            scheduler.dispatch()
            for chunk in chunks:
                tokens, logprobs = sampled[chunk.request[:2]]
                tokens += chunk.tokens
                logprobs += chunk.logprobs
                if chunk.finish_reason:
                    del sampled[chunk.request[:2]]
                    text, thought = self.tokenizer.answer(tokens)
                    yield *chunk.request[:2], Answer(text, tokens, chunk.finish_reason, sum(logprobs), thought)

    def scheduler(self, capacity: int = 128, steer: Float[np.ndarray, "L D"] | None = None) -> Scheduler:
        """A scheduler for requests, with the present adapters; `capacity`: tokens per slot at the start."""
        stop, count = jnp.asarray(self.tokenizer.stop_ids, jnp.int32), self.num_decode_batches
        steer = self._checked_steer(steer)
        decode_chunk = functools.partial(
            decode, self.model, self._stack, steps=self.chunk, steer=steer, sharding=self.sharding
        )

        def batch() -> DecodeBatch:
            state = init_decode_state(self.model, self.slots // count, capacity, len(self._adapters), self.sharding)
            executor = ThreadPoolExecutor(1) if count > 1 else None
            return DecodeBatch(state, decode_chunk, stop, self.chunk, self.sharding, executor)

        prefill_prompts = functools.partial(self._prefill, adapter=self._stack, steer=steer)
        return Scheduler([batch() for _ in range(count)], prefill_prompts, self._rows)

    def sample_requests(
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
    ) -> list[SampleRequest]:
        """The requests for these samples of a prompt, which the scheduler knows as number `index`."""
        [mask] = self._adapter_masks([adapter])
        settings = np.float32(temperature), np.float32(top_p), np.int32(max_new_tokens), mask
        return [
            SampleRequest(index, sample, ids, SamplingParams(request_key(seed, ids, sample), *settings), top_logprobs)
            for sample in samples
        ]

    def _prefill(
        self, prompts: Sequence[Sequence[SampleRequest]], adapter: Adapter | None, steer: np.ndarray | None
    ) -> PrefillOutput:
        """Prefills the prompts of one padded length, given by the requests for each."""
        ids = [requests[0].prompt for requests in prompts]
        length = bucket(len(ids[0]))
        rows = self._rows(length)
        lengths = np.array([*map(len, ids), *[1] * (rows - len(ids))], np.int32)
        masks = np.stack([requests[0].params.adapter_mask for requests in prompts])
        masks = np.pad(masks, ((0, rows - len(ids)), (0, 0)))
        tokens = host_arrays.pad_rows(ids, rows, length)
        return prefill(self.model, adapter, tokens, lengths, masks, steer=steer, sharding=self.sharding)

    # --- reading ---

    def logits(self, tokens: Int[np.ndarray, "B T"], adapter: str = "default") -> Float[np.ndarray, "B T V"]:
        """Float32 next-token logits at every token, to look at closely; no other method holds so many."""
        tokens, vocabulary = np.array(tokens, object), self.model.config.vocab_size
        if tokens.ndim != 2 or not tokens.size or not ((tokens >= 0) & (tokens < vocabulary) & (tokens % 1 == 0)).all():
            raise UserError(f"logits: expected rows of token ids below {vocabulary}, found {tokens.tolist()!r:.60}")
        self._check_length(tokens.shape[1])
        masks = self._adapter_masks([adapter] * len(tokens))
        return host_arrays.to_host(_logits_or_residuals(self.model, self._stack, tokens.astype(np.int32), masks))

    def choice_logprobs(
        self,
        prompts: Prompts,
        choices: Sequence[str] | Sequence[Sequence[str]],
        prefix: str = "",
        adapter: str | Sequence[str] = "default",
        steer: Float[np.ndarray, "L D"] | None = None,
    ) -> Float[np.ndarray, "B C"]:
        """The joint log-probability of each choice as the continuation of the assistant's turn after `prefix`.

        `choices` is one list for all prompts or one of equal length for each. A choice that begins another ("1" and
        "10") gives up the longer one's probability. `adapter` and `steer` as in `stream`. Raises UserError for lists of
        unequal length, and where a choice is empty or does not continue the prefix at a token's end.
        """
        prompts = chats(prompts)
        given = choices if isinstance(choices, list | tuple) else ()  # a text alone is no list of its letters
        lists: Any = [given] * len(prompts) if given and isinstance(given[0], str) else given
        full = all(isinstance(each, list | tuple) and each for each in lists)
        if not full or len(lists) != len(prompts) or len(set(map(len, lists))) > 1:
            raise UserError("expected one list of choices, or one for every prompt and all of the same length")
        if not prompts:
            return np.zeros((0, 0), np.float32)
        questions = encode_questions(self.tokenizer, prompts, lists, prefix)
        self._check_length(max(len(question.prompt) + max(map(len, question.choices)) for question in questions))
        names = self._names(adapter, len(questions))
        rows = pack_questions(questions, names)
        masks = self._adapter_masks([names[row.questions[0]] for row in rows])
        steer = self._checked_steer(steer)
        groups = self._groups([row.sizes for row in rows])

        def dispatch(group: tuple[tuple[int, ...], list[int]]) -> Array:
            (length, *_), numbers = group
            count = self._rows(length)
            batch = collate_rows([rows[number] for number in numbers], count)
            mask = np.pad(masks[numbers], ((0, count - len(numbers)), (0, 0)))
            return pair_logprobs(self.model, self._stack, batch, mask, steer=steer, sharding=self.sharding)

        logprobs = np.zeros((len(questions), len(lists[0])), np.float32)
        results = host_arrays.map_in_threads(dispatch, groups, self.num_decode_batches)
        for (_, numbers), result in zip(groups, results, strict=True):
            for number, row in zip(numbers, host_arrays.to_host(result)):
                values = iter(row.tolist())
                for i in rows[number].questions:
                    logprobs[i] = joint_logprobs(questions[i], values)
        return logprobs

    def activations(
        self, prompts: Prompts, layers: int | Sequence[int] | None = None, adapter: str | Sequence[str] = "default"
    ) -> list[Float[np.ndarray, "layers T D"]]:
        """The residual stream after each of `layers` (0 first, -1 last; by default all), float32, at every token."""
        depth, prompts = self.model.config.num_hidden_layers, chats(prompts)
        layers = range(depth) if layers is None else np.atleast_1d(layers).tolist()
        if not layers or not all(isinstance(layer, int) and -depth <= layer < depth for layer in layers):
            raise UserError(f"activations: layers are 0 to {depth - 1}")
        prompt_ids = [self.tokenizer.prompt(prompt) for prompt in prompts]
        self._check_length(max(map(len, prompt_ids), default=0))
        masks = self._adapter_masks(self._names(adapter, len(prompts)))
        results: list[Any] = [None] * len(prompts)
        for (length,), indices in self._groups([(bucket(len(ids)),) for ids in prompt_ids]):
            rows = self._rows(length)
            tokens = host_arrays.pad_rows([prompt_ids[i] for i in indices], rows, length)
            mask = np.pad(masks[indices], ((0, rows - len(indices)), (0, 0)))
            chosen = tuple(layer % depth for layer in layers)
            output = _logits_or_residuals(self.model, self._stack, tokens, mask, layers=chosen, sharding=self.sharding)
            for i, row in zip(indices, host_arrays.to_host(output).swapaxes(0, 1)):
                results[i] = np.asarray(row[:, : len(prompt_ids[i])], np.float32)
        return results

    # --- checks and shapes ---

    def _checked_steer(self, steer: Float[np.ndarray, "L D"] | None) -> Float[np.ndarray, "L D"] | None:
        """`steer` as float32; None has no leaves as an argument, so that the programs are those without it."""
        if steer is None:
            return None
        shape = self.model.config.num_hidden_layers, self.model.config.hidden_size
        steer = np.asarray(steer)
        if steer.shape != shape or not np.isfinite(steer := steer.astype(np.float32)).all():
            raise UserError(f"steer: expected finite numbers of shape [layers, width] {shape}, found {steer.shape}")
        return steer

    def _check_length(self, tokens: int) -> None:
        if tokens > (most := self.model.config.max_position_embeddings):
            raise UserError(f"prompt and answer need {tokens} positions, the model has {most}; ask for fewer tokens")

    def _rows(self, length: int) -> int:
        return pass_rows(length, self.pass_tokens, self.sharding.batch_shards)

    def _groups(self, sizes: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], list[int]]]:
        """The indices of equal sizes, the first of which is a row's length, as many as go through the model at once."""
        by_size = collections.defaultdict[tuple[int, ...], list[int]](list)
        for index, size in enumerate(sizes):
            by_size[size].append(index)
        return [
            (size, indices[start : start + self._rows(size[0])])
            for size, indices in sorted(by_size.items())
            for start in range(0, len(indices), self._rows(size[0]))
        ]


def pass_rows(length: int, pass_tokens: int, parts: int) -> int:
    """How many rows of this length go through the model at once: up to 16, a multiple of `parts`."""
    return max(1, min(16, pass_tokens // length) // parts) * parts


@functools.partial(jax.jit, static_argnames=("layers", "sharding"))
def _logits_or_residuals(
    model: Transformer,
    adapter: Adapter | None,
    tokens: Int[Array, "B T"],
    adapter_mask: Float[Array, "B S"],
    *,
    layers: tuple[int, ...] = (),
    sharding: Sharding = UNSHARDED,
) -> Array:
    """The residual stream after `layers`, [layers, B, T, D]; without any, the logits, [B, T, V]."""
    output = model(tokens, return_residuals=layers, sharding=sharding, **adapted(adapter, adapter_mask))
    return output.residuals if layers else model.logits(output.hidden)
