"""Thoughts that a model writes before its answer, between tags that its chat template knows, such as <think>."""

import re

from em_jax.base.thought_tags import CLOSING, OPENING, closing

OFF = {"enable_thinking": False, "thinking": False}
"""What templates are told so that no thought is asked for: Qwen3 and SmolLM3 name it so, DeepSeek and Granite so."""


def is_tag(text: str) -> bool:
    """Whether a text is one tag of a thought."""
    return bool(re.fullmatch(rf"{OPENING}|{CLOSING}", text.strip()))


def tag_of(template: str, prompt: str) -> str:
    """The tag that opens a thought, as the end of a `prompt` or a template's source shows it; "" for none."""
    if shown := re.search(rf"({OPENING})\s*\Z", prompt):
        return shown[1]
    for end in re.findall(CLOSING, template):
        for each in [*re.findall(OPENING, template), end.replace("/", "", 1)]:
            if closing(each) == end != each:
                return each
    return ""


def close(prompt: str, tag: str) -> str:
    """A prompt whose end opens a thought, with that thought closed and empty; any other prompt as it is."""
    opened = tag and prompt.rstrip().endswith(tag)
    return f"{prompt.rstrip()}\n\n{closing(tag)}\n\n" if opened else prompt


def part(text: str, tag: str, is_open: bool, growing: bool = False) -> tuple[str, str]:
    """(answer, thought) of a text; `is_open` says that its prompt opened a thought.

    An answer is what follows the thought's end: a text that ends in its thought has an empty answer. Of a text that is
    `growing` only what no longer changes is given: what may become a tag waits.
    """
    if growing and tag and tag.startswith(text.lstrip()):
        return "", ""
    begun = tag and text.lstrip().startswith(tag)
    if not begun and not (tag and is_open):
        return text, ""
    thought, end, answer = (text.lstrip()[len(tag) :] if begun else text).partition(closing(tag))
    if growing and not end:
        thought = thought[: len(thought) - overlap(thought, closing(tag))]
    return (answer.lstrip() if end else ""), thought.strip()


def overlap(text: str, word: str) -> int:
    """How many characters at the end of a text are the beginning of a word that is not complete yet."""
    sizes = range(min(len(word) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(word[:size])), 0)


def join(before: str, after: str, tag: str) -> tuple[str, int] | None:
    """(A chat's text, where its last answer begins), given the prompt `before` that answer and the chat `after` it.

    Where the template writes a thought in one of them only, the text has the chat's own, else the prompt's empty one.
    None where the chat does not go on from the prompt.
    """
    before = close(before, tag)
    if not tag:
        return (after, len(before)) if after.startswith(before) else None
    opening, end = re.escape(tag), re.escape(closing(tag))
    empty = re.search(rf"{opening}\s*{end}\s*\Z", before)
    head = before[: empty.start()] if empty else before
    if not after.startswith(head):
        return None
    if thought := re.match(rf"\s*{opening}.*?{end}\s*", after[len(head) :], re.DOTALL):
        return after, len(head) + thought.end()
    return (after if after.startswith(before) else before + after[len(head) :]), len(before)
