"""What a tokenizer's files may ask for: text that does not grow without bound, patterns that come to an end.

The tokenizers library runs what tokenizer.json says, native code that no signal interrupts. Regular expressions are its
pre-tokenizer's and its normalizer's; and each step of a normalizer may make the text longer.
"""

import math
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from em_jax.base.errors import UserError
from em_jax.base.files import read_object

MOST_GROWTH = 16
"""Times that all steps together may make a text longer."""
SECONDS, CHARACTERS = 3.0, 1_000_000
"""One text may take so long, and as long again for each so many characters of it."""
SHORT, SHORT_FOR_KNOWN = 100, 10_000
"""Characters of a text on which every pattern that does not explode comes to its end at once, or every one of KNOWN."""
KNOWN = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
}
"""Qwen2's regular expression: at worst it looks at each character of white space once for each other."""
STEPS = {"ByteLevel": 2.0, "Metaspace": 2.0, "BertNormalizer": 3.0, "BPEDecoder": 2.0, "WordPiece": 2.0}
"""How many times longer a step of that type makes a text at worst; others than these and Replace do not."""
EXPECTED = "expected regular expressions in tokenizer.json that match in time; give the model's own"
Result = TypeVar("Result")


def check(directory: pathlib.Path) -> int:
    """How many characters a text may have and need no watching, by the patterns of a checkpoint's tokenizer*.json.

    UserError where one has steps that make a text many times longer as it is read, or patterns that explode.
    """
    known = (directory / "tokenizer.json").is_file()
    for path in sorted(directory.glob("tokenizer*.json")):
        fields = read_object(path, "a tokenizer")
        for kinds in (("normalizer", "pre_tokenizer"), ("decoder",)):
            growth = math.prod(_growth(step) for kind in kinds for step in _steps(fields.get(kind)))
            if not growth <= MOST_GROWTH:
                raise UserError(
                    f"{path}: {' and '.join(kinds)} may make a text {growth:.3g} times longer, expected at most "
                    f"{MOST_GROWTH} times; give the model's own tokenizer"
                )
            for step in (step for kind in kinds for step in _steps(fields.get(kind))):
                pattern, is_regex = _pattern(step)
                if is_regex and _explodes(pattern):
                    raise UserError(f"{path}: {pattern!r} could take for ever to match: {EXPECTED}")
                known &= not is_regex or pattern in KNOWN
        # A decoder works with Python's lock held, where no deadline can be kept.
        if any(_pattern(step)[1] for step in _steps(fields.get("decoder"))):
            raise UserError(f"{path}: a decoder with a regular expression is not supported")
    return SHORT_FOR_KNOWN if known else SHORT


def within_reason(call: Callable[[], Result], characters: int, short: int = SHORT) -> Result:
    """call(), the tokenizers library at work on a text of so many characters, refused where it finds no end.

    The library lets Python's lock go while it encodes, so a thread of its own can be left behind. A text of up to
    `short` characters does without.
    """
    ended: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            ended.append((call(), None))
        except BaseException as error:  # a panic of the library's is no Exception
            ended.append((None, error))

    seconds = SECONDS * (1 + characters / CHARACTERS)
    if characters <= short:
        work()
    else:
        _in_a_thread(work, seconds)
    if not ended:
        raise UserError(f"the tokenizer did not end within {seconds:.0f} s on {characters:,} characters: {EXPECTED}")
    result, error = ended[0]
    if error is not None and not isinstance(error, (Exception, KeyboardInterrupt, SystemExit)):
        raise UserError(f"the tokenizer gave up ({str(error)[:200]}): {EXPECTED}") from None
    if error is not None:
        raise error
    return result


def _in_a_thread(work: Callable[[], None], seconds: float) -> None:
    """Waits for work() until it ends or has taken so long, by the clock and by the processor's time.

    By both, as a process that was stopped for a while has lost nothing.
    """
    thread = threading.Thread(target=work, daemon=True)
    began, worked = time.monotonic(), time.process_time()
    thread.start()
    thread.join(seconds)
    while thread.is_alive() and min(time.monotonic() - began, time.process_time() - worked) < seconds:
        thread.join(0.1)


def _steps(value: Any) -> Iterator[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder, or those of a sequence, however nested."""
    waiting = [value]
    while waiting:
        step = waiting.pop()
        if isinstance(step, list):
            waiting += step
        elif isinstance(step, dict):
            yield step
            waiting += [step.get(name) for name in ("normalizers", "pretokenizers", "decoders")]


def _pattern(step: dict[str, Any]) -> tuple[str, bool]:
    """What a step replaces or splits at, and whether it is a regular expression."""
    pattern = step.get("pattern")
    if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        return pattern["Regex"], True
    return (pattern.get("String") if isinstance(pattern, dict) else None) or "", False


def _explodes(pattern: str) -> bool:
    """Whether a group is repeated that can match one text in several ways, as in (a+)+."""
    plain = re.sub(r"\[(\\.|[^\]\\])+\]", "x", re.sub(r"\\[^\[\]]", "x", pattern))
    while group := re.search(r"\(([^()]*)\)([*+{]?)", plain):
        several = re.search(r"[*+|]|(?!^)\?|\{\d*,", group[1])
        if several and group[2]:
            return True
        plain = plain[: group.start()] + ("x*" if several else "x") + group[2] + plain[group.end() :]
    return False


def _growth(step: dict[str, Any]) -> float:
    """How many times longer a step makes a text at worst."""
    kind = step.get("type")
    if kind == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")))
    if kind != "Replace":
        return STEPS.get(kind, 1.0) if isinstance(kind, str) else 1.0
    pattern, is_regex = _pattern(step)
    content = len(str(step.get("content", "")))
    # A regular expression may match nothing, between any two characters.
    return 1.0 + content if is_regex or not pattern else max(1.0, content / len(pattern))
