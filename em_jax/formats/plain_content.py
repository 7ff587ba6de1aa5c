"""Messages are data: special tokens that a message's text spells are encoded as its letters, never as tokens.

A mark, a character that means nothing and that no message holds, is put into every such spelling before the template
writes the chat. So the special tokens of the chat are the template's own. The same holds for a tokenizer's other added
tokens, where the template marks turns by them.
"""

import functools
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from em_jax.base.errors import UserError
from em_jax.base.sanitize import is_whole
from em_jax.untrusted import tokenizer_guard

MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Noncharacters of Unicode, which are for a program's own use."""
Encoding = tuple[list[int], list[int]]
"""Token ids, and where in the text each of them begins."""
_ENCODING = threading.Lock()
"""A tokenizer keeps whether special tokens are text from one call to the next: threads encode one after the other."""


def encode(tokenizer: Any, text: str, plain: bool) -> Encoding:
    """Ids of a text, by a tokenizer of transformers, and where each begins; special tokens are text where `plain`."""
    if not is_whole(text):  # tokenizers read UTF-8
        raise UserError("a text to encode holds half of a surrogate pair, such as \\ud800: take it out")
    options = {"add_special_tokens": False, "split_special_tokens": plain, "return_offsets_mapping": True}
    with _ENCODING:
        encoded = tokenizer_guard.with_time_limit(functools.partial(tokenizer, text, **options), len(text))
    return encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]


class PlainContent:
    """Encodes chats for a tokenizer of transformers; `turn_marks` are added tokens' ids that count as special ones."""

    def __init__(self, tokenizer: Any, turn_marks: Collection[int]):
        added = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.special or i in turn_marks}
        tokens = sorted(added.items(), key=lambda item: -len(item[1].content))
        self._encode = functools.partial(encode, tokenizer)
        self._ids = {token.content: i for i, token in tokens}
        self._splits = {token.content for _, token in tokens if token.special}
        self._spelled = re.compile("|".join(re.escape(token.content) for _, token in tokens) or r"(?!)")
        # Some special tokens take the blanks beside them.
        blanks = {True: r"\s*", False: ""}
        each = [f"{blanks[t.lstrip]}({re.escape(t.content)}){blanks[t.rstrip]}" for _, t in tokens]
        self._written = re.compile("|".join(each) or r"(?!)")

    def mark(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        """The messages with every spelled special token broken by a mark, and the mark; "" where there is none."""
        chat = [dict(message) for message in messages]
        texts = [value for message in chat for value in message.values() if isinstance(value, str)]
        if not any(self._spelled.search(text) for text in texts):
            return chat, ""
        mark = next((each for each in MARKS if not any(each in text for text in texts)), None)
        if mark is None:
            raise UserError("a chat holds all 32 noncharacters of Unicode from U+FDD0 on: take them out")

        def broken(text: str) -> str:
            # A spelling that the tokenizer would not split gets two marks, at which `encode` splits it.
            return self._spelled.sub(
                lambda match: match[0][:1] + mark * (1 if match[0] in self._splits else 2) + match[0][1:], text
            )

        return [{k: broken(v) if isinstance(v, str) else v for k, v in message.items()} for message in chat], mark

    def encode(self, text: str, mark: str) -> Encoding:
        """Ids of a chat that the template wrote from marked messages, without the marks, and where each begins."""
        if not mark:
            return self._encode(text, False)
        ids: list[int] = []
        starts: list[int] = []
        end = 0
        for match in [*self._written.finditer(text), None]:
            for part in re.finditer(rf"((?!{mark}{mark}).)+", text[end : match.start() if match else len(text)], re.S):
                kept = [end + part.start() + i for i, letter in enumerate(part[0]) if letter != mark]
                plain, begins = self._plain(part[0].replace(mark, ""), follows=end + part.start() > 0)
                ids += plain
                starts += [kept[min(begin, len(kept) - 1)] for begin in begins]
            if match:
                ids.append(self._ids[match[match.lastindex or 0]])
                starts.append(match.start())
                end = match.end()
        return ids, starts

    def _plain(self, text: str, follows: bool) -> Encoding:
        """Ids of a text without special tokens, and where each begins; `follows` says that a special token precedes it.

        Some tokenizers mark a text's beginning. Behind a newline, which is then taken away, there is none.
        """
        if not text:
            return [], []
        special = next(iter(self._ids))
        if not follows or self._encode(special + "a", False)[0][1:] == self._encode("a", True)[0]:
            return self._encode(text, True)
        newline = self._encode("\n", True)[0]
        ids, starts = self._encode("\n" + text, True)
        if ids[: len(newline)] != newline:
            return self._encode(text, True)
        return ids[len(newline) :], [max(start - 1, 0) for start in starts[len(newline) :]]
