"""Guards a tokenizer's files: text must not grow without bound, and regular expressions must come to an end.

The tokenizers library runs what tokenizer.json says in native code that no signal interrupts. Its normalizer and
pre-tokenizer match regular expressions, and each step of its normalizer may lengthen the text.
"""

import math
import pathlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from em_jax.base.errors import UserError
from em_jax.base.files import read_object

MAX_GROWTH = 16
"""How many times longer all steps together may make a text."""
SECONDS, CHARACTERS = 3.0, 1_000_000
"""The time limit of one text, and again for each so many characters of it."""
STEPS = {"ByteLevel": 2.0, "Metaspace": 2.0, "BertNormalizer": 3.0, "BPEDecoder": 2.0, "WordPiece": 2.0}
"""How many times longer a step of that type makes a text at worst; besides these only Replace and Prepend do."""
EXPECTED = "expected regular expressions in tokenizer.json that match in time; give the model's own"
Result = TypeVar("Result")


def check(directory: pathlib.Path) -> None:
    """UserError where a checkpoint's tokenizer*.json may make a text many times longer."""
    for path in sorted(directory.glob("tokenizer*.json")):
        fields = read_object(path, "a tokenizer")
        encoding, decoding = _steps(fields, "normalizer", "pre_tokenizer"), _steps(fields, "decoder")
        for names, steps in (("normalizer and pre_tokenizer", encoding), ("decoder", decoding)):
            growth = math.prod(_growth(step) for step in steps)
            if not growth <= MAX_GROWTH:
                raise UserError(
                    f"{path}: {names} may make a text {growth:.3g} times longer, expected at most {MAX_GROWTH} times; "
                    "give the model's own tokenizer"
                )
        # A decoder holds Python's lock while it works, so no time limit could be kept.
        if any(_regex(step) is not None for step in decoding):
            raise UserError(f"{path}: a decoder with a regular expression is not supported")


def with_time_limit(call: Callable[[], Result], characters: int) -> Result:
    """The result of call(), which tokenizes a text of so many characters, in a thread.

    Raises UserError where it does not end in time, or where the library panics. The thread is then left behind: the
    library encodes without Python's lock. It gives up one match after ten million steps, but a text may need many.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # a panic of the Rust library is no Exception
            future.set_exception(error)

    seconds = SECONDS * (1 + characters / CHARACTERS)
    thread = threading.Thread(target=work, daemon=True)
    started, used = time.monotonic(), time.process_time()
    thread.start()
    # By processor time too: a process that was stopped for a while has used none.
    while thread.is_alive() and min(time.monotonic() - started, time.process_time() - used) < seconds:
        thread.join(0.1)
    if not future.done():
        raise UserError(f"the tokenizer did not end within {seconds:.0f} s on {characters:,} characters: {EXPECTED}")
    if type(panic := future.exception()).__name__ == "PanicException":  # its class cannot be imported
        raise UserError(f"the tokenizer gave up ({str(panic)[:200]}): {EXPECTED}")
    return future.result()


def _steps(fields: dict[str, Any], *kinds: str) -> list[dict[str, Any]]:
    """The steps of these kinds (normalizer, pre_tokenizer, decoder), those of nested sequences included."""
    steps, pending = [], [fields.get(kind) for kind in kinds]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            steps.append(value)
            pending += [value.get(name) for name in ("normalizers", "pretokenizers", "decoders")]
    return steps


def _regex(step: dict[str, Any]) -> str | None:
    """The regular expression that a step replaces or splits at, if any."""
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    return regex if isinstance(regex, str) else None


def _growth(step: dict[str, Any]) -> float:
    """How many times longer a step makes a text at worst."""
    kind, pattern = step.get("type"), step.get("pattern")
    if kind == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")))
    if kind != "Replace":
        return STEPS.get(kind, 1.0) if isinstance(kind, str) else 1.0
    text = pattern.get("String") if isinstance(pattern, dict) and _regex(step) is None else None
    content = len(str(step.get("content", "")))
    # A regular expression, or an empty text, may match between any two characters.
    return max(1.0, content / len(text)) if isinstance(text, str) and text else 1.0 + content
