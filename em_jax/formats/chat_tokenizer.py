"""A checkpoint's tokenizer and chat template, and the mask of the assistant's tokens."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from em_jax.base.errors import UserError
from em_jax.base.files import read_object
from em_jax.base.sanitize import is_whole
from em_jax.untrusted import tokenizer_guard
from em_jax.untrusted.chat_template import ChatTemplate

Message = Mapping[str, str]


class ChatTokenizer:
    """Converts text and chats to token ids and back, with the checkpoint's own files.

    A chat without a system message gets the template's default one, in training and in evaluation.
    """

    def __init__(
        self, tokenizer: Any, template: str, stop_ids: Sequence[int], unwatched: int = tokenizer_guard.UNWATCHED
    ):
        self._tokenizer, self._unwatched = tokenizer, unwatched
        self._template = ChatTemplate(template, tokenizer.special_tokens_map)
        self.stop_ids = tuple(stop_ids)
        self.vocabulary = len(tokenizer)

    @classmethod
    def from_directory(cls, directory: pathlib.Path) -> "ChatTokenizer":
        """Loads a checkpoint's tokenizer. Raises UserError where it, its chat template or its stop ids are missing."""
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        import transformers

        unwatched = tokenizer_guard.check(directory)
        # Choose the class here: the library takes that of the model's type, and would ignore the pre-tokenizer of
        # tokenizer.json or the class named beside a sentencepiece model.
        path = directory / "tokenizer_config.json"
        kind = read_object(path, "a tokenizer").get("tokenizer_class") if path.is_file() else None
        if (directory / "tokenizer.json").is_file():
            kind = "PreTrainedTokenizerFast"
        elif not isinstance(kind, str) or not kind.endswith(("Tokenizer", "TokenizerFast")):
            kind = "AutoTokenizer"
        try:
            tokenizer = getattr(transformers, kind).from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the library raises what its parsers raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{directory}: no tokenizer could be loaded ({reason})") from None
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template or not isinstance(template, str):
            raise UserError(f"{directory}: the tokenizer has no chat template; expected an instruct checkpoint")
        return cls(tokenizer, template, _stop_ids(directory, tokenizer.eos_token_id), unwatched)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: no tokens are added, special tokens in the text are not interpreted."""
        return self._encode(text, split_special_tokens=True)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def piece(self, token: int) -> str:
        """The text of one token, special tokens included."""
        return self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """The text of a chat, by the template."""
        return self._template.render(messages, generation_prompt=generation_prompt)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat up to the start of the assistant's answer."""
        return self._encode(self.render(messages, generation_prompt=True))["input_ids"]

    def example(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Token ids of a chat, and which of them carry loss: the assistant's text, stripped, and the turn's end.

        The turn's end is what the template writes up to the next turn (`<|im_end|>` and a newline in ChatML). Raises
        UserError where the template renders the beginning of a chat differently from the whole chat.
        """
        messages = [
            {**message, "content": message["content"].strip()} if message["role"] == "assistant" else message
            for message in messages
        ]
        spans = []
        rendered = ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:i], generation_prompt=True)
            after = self.render(messages[: i + 1], generation_prompt=False)
            if not before.startswith(rendered) or not after.startswith(before):
                raise UserError(
                    "the chat template writes earlier turns differently later: no response mask can be made"
                )
            spans.append(range(len(before), len(after)))
            rendered = after
        # Encode the chat as one text: some tokenizers mark the beginning of each text.
        encoded = self._encode(rendered, return_offsets_mapping=True)
        mask = [any(start in span for span in spans) for start, _ in encoded["offset_mapping"]]
        return encoded["input_ids"], mask

    def _encode(self, text: str, **more: bool) -> Any:
        if not is_whole(text):  # tokenizers read UTF-8
            raise UserError("a text to encode holds half of a surrogate pair, such as \\ud800: take it out")
        return tokenizer_guard.with_time_limit(
            lambda: self._tokenizer(text, add_special_tokens=False, **more), len(text), self._unwatched
        )


def _stop_ids(directory: pathlib.Path, end: int | None) -> tuple[int, ...]:
    """The ids that end an answer: eos_token_id of generation_config.json, else the tokenizer's own."""
    path = directory / "generation_config.json"
    stop = read_object(path, "generation settings").get("eos_token_id") if path.exists() else None
    stop = end if stop is None else stop
    ids = tuple(stop) if isinstance(stop, list) else (stop,)
    if not ids or any(type(i) is not int or i < 0 for i in ids):
        raise UserError(f"{directory}: no stop token: expected eos_token_id in generation_config.json, found {stop!r}")
    return ids
