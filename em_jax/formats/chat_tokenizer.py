"""A checkpoint's tokenizer and chat template, and the mask of the assistant's tokens."""

import functools
import itertools
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from em_jax.base.errors import UserError
from em_jax.base.files import read_object
from em_jax.formats import thoughts
from em_jax.formats.plain_content import PlainContent, encode
from em_jax.untrusted import tokenizer_guard
from em_jax.untrusted.chat_template import ChatTemplate

Message = Mapping[str, Any]
"""role, content, and of the assistant's perhaps reasoning_content (a thought) and weight (0: not to be learned)."""
RENDERED = ("role", "content", "reasoning_content")
"""What of a message the template gets."""


class ChatTokenizer:
    """Converts text and chats to token ids and back, with the checkpoint's own files.

    A chat without a system message gets the template's default one, in training and in evaluation. A template that can
    is told to ask for no thought (see `thoughts`). `stop_ids` are those given and that of the end of the template's
    turn.
    """

    def __init__(self, tokenizer: Any, template: str, stop_ids: Sequence[int]):
        self._tokenizer = tokenizer
        self._template = ChatTemplate(template, tokenizer.special_tokens_map | thoughts.OFF)
        self.vocabulary = len(tokenizer)
        prompt, turn_marks, turn_end = self._try_template()
        self._content = PlainContent(tokenizer, turn_marks)
        self._thought = thoughts.tag_of(template, prompt)
        tags = (self._thought, thoughts.closing(self._thought))
        self._tags = {i: each.content for i, each in tokenizer.added_tokens_decoder.items() if each.content in tags}
        self._opens_thought = thoughts.close(prompt, self._thought) != prompt
        self.stop_ids = tuple(dict.fromkeys([*stop_ids, *turn_end]))

    @classmethod
    def from_directory(cls, directory: pathlib.Path) -> "ChatTokenizer":
        """Loads a checkpoint's tokenizer. Raises UserError where it, its chat template or its stop ids are missing."""
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        import transformers

        tokenizer_guard.check(directory)
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
                # Whoever asks says what is too long: the library would print a line of its own.
                str(directory), local_files_only=True, trust_remote_code=False, model_max_length=2**40
            )  # fmt: skip
            if not any((directory / name).is_file() for name in tokenizer.vocab_files_names.values()):
                # Of Qwen's model types the library then makes a tokenizer of one token, which encodes no text.
                raise ValueError(f"found none of {', '.join(tokenizer.vocab_files_names.values())}")
        except Exception as error:  # the library raises what its parsers raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{directory}: no tokenizer could be loaded; expected tokenizer.json and tokenizer_config.json beside "
                f"config.json ({reason})"
            ) from None
        template = tokenizer.chat_template
        if isinstance(template, dict):
            if "default" not in template:
                raise UserError(
                    f"{directory}: of the tokenizer's chat templates ({', '.join(template) or 'none'}) none is named "
                    "'default': name the one for plain chats so"
                )
            template = template["default"]
        if not template or not isinstance(template, str):
            raise UserError(f"{directory}: the tokenizer has no chat template; expected an instruct checkpoint")
        return cls(tokenizer, template, _stop_ids(directory, tokenizer.eos_token_id))

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: no tokens are added, special tokens in the text are not interpreted."""
        return encode(self._tokenizer, text, True)[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens but for the tags of thoughts."""
        plain = functools.partial(self._tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        runs = itertools.groupby(ids, self._tags.get)
        return "".join(tag * len(list(run)) if tag else plain(list(run)) for tag, run in runs)

    def piece(self, token: int) -> str:
        """The text of one token, special tokens included."""
        return self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def check_fits(self, vocab_size: int, where: str) -> None:
        """UserError where the tokenizer has ids that a model of so many tokens, from `where`, does not have."""
        if self.vocabulary > vocab_size:
            raise UserError(
                f"{where}: the tokenizer has {self.vocabulary} tokens, the model {vocab_size}; they do not "
                "belong together"
            )

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """The text of a chat, by the template."""
        return self._template.render(messages, generation_prompt=generation_prompt)

    def prompt(self, messages: Sequence[Message], *, answering: bool = False) -> list[int]:
        """Token ids of a chat up to the start of the assistant's turn, or, `answering`, of its answer.

        They differ where the template opens a thought: an answer then follows an empty one.
        """
        chat, mark = self._content.mark(_rendered(messages))
        text = self.render(chat, generation_prompt=True)
        return self._content.encode(thoughts.close(text, self._thought) if answering else text, mark)[0]

    def answer(self, ids: Sequence[int]) -> tuple[str, str]:
        """(answer, thought) as texts of the token ids of a sampled turn."""
        return self.part(self.decode(ids))

    def part(self, text: str, growing: bool = False) -> tuple[str, str]:
        """(answer, thought) of a sampled turn's text; of one that is `growing` what no longer changes."""
        return thoughts.part(text, self._thought, self._opens_thought, growing)

    def example(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Token ids of a chat, and which of them carry loss: the assistant's text, stripped, and the turn's end.

        The turn's end is what the template writes up to the next turn (`<|im_end|>` and a newline in ChatML). Turns of
        weight 0 carry none, nor do thoughts; what follows the last turn that does is left out. Raises UserError where
        the template renders the beginning of a chat differently from the whole chat, or leaves a thought out.
        """
        learned = [i for i, each in enumerate(messages) if each["role"] == "assistant" and each.get("weight", 1)]
        chat, mark = self._content.mark(_rendered(messages))
        for message in chat:
            if message["role"] == "assistant":
                message["content"] = message["content"].strip()
        spans = []
        rendered = ""
        for i in learned:
            before = self.render(chat[:i], generation_prompt=True)
            after = self.render(chat[: i + 1], generation_prompt=False)
            thought = chat[i].get("reasoning_content") or thoughts.part(chat[i]["content"], self._thought, False)[1]
            if thought and thought.strip() not in after:
                raise UserError("the chat template leaves out the thought of an assistant turn: take it out of the row")
            joined = thoughts.join(before, after, self._thought)
            if joined is None or not joined[0].startswith(rendered):
                raise UserError(
                    "the chat template writes earlier turns differently later: no response mask can be made of this "
                    'row as a whole; give all assistant turns but the last "weight": 0'
                )
            rendered, start = joined
            spans.append(range(start, len(rendered)))
        # Encode the chat as one text: some tokenizers mark the beginning of each text.
        ids, starts = self._content.encode(rendered, mark)
        return ids, [any(start in span for span in spans) for start in starts]

    def _try_template(self) -> tuple[str, list[int], list[int]]:
        """The prompt of a small chat, the ids of added tokens in its text, and of that which ends the assistant's turn.

        ("", [], []) where the template refuses the chat, which is no fault before it is used.
        """
        asked, said = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Goodbye"}
        try:
            prompt = self.render([asked], generation_prompt=True)
            whole = self.render([asked, said], generation_prompt=False)
        except UserError:
            return "", [], []
        added, tokens_of = self._tokenizer.added_tokens_decoder, functools.partial(encode, self._tokenizer, plain=False)
        marks = [i for i in tokens_of(whole)[0] if i in added and not thoughts.is_tag(self.piece(i))]
        head, found, end = whole.rpartition(said["content"])
        begun = head.removeprefix(prompt).strip()
        if head.startswith(prompt) and begun and not thoughts.tag_of(begun, begun):
            writes = f"writes {begun[:40]!r} before an answer, but not at the end of a prompt"
            print(f"the chat template {writes} (add_generation_prompt): the model has to write it", file=sys.stderr)
        if not found or not end.strip():
            return prompt, marks, []
        first = next((i for i in tokens_of(end)[0] if self.piece(i).strip()), None)
        if first is not None and first in added:
            return prompt, marks, [first]
        if (word := end.split()[0])[0] in "<[":
            ends = f"ends a turn with {word[:40]!r}, which is no token of this tokenizer"
            print(f"the chat template {ends}: answers may run on into invented turns", file=sys.stderr)
        return prompt, marks, []


def _rendered(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{name: message[name] for name in RENDERED if message.get(name) is not None} for message in messages]


def _stop_ids(directory: pathlib.Path, end: int | None) -> tuple[int, ...]:
    """The ids that end an answer by the checkpoint's settings: those of generation_config.json, else of config.json (as
    transformers reads them), and the tokenizer's own."""
    stop, where = None, "generation_config.json"
    for name in ("config.json", where):
        path = directory / name
        found = read_object(path, "generation settings").get("eos_token_id") if path.exists() else None
        stop = stop if found is None else found
    ids = list(stop) if isinstance(stop, list) else [] if stop is None else [stop]
    if stop == [] or any(type(i) is not int or i < 0 for i in ids) or (not ids and end is None):
        raise UserError(f"{directory}: no stop token: expected eos_token_id in {where}, found {stop!r}")
    return tuple(dict.fromkeys([*ids, *([] if end is None else [end])]))
