"""Conservative parsers of sampled texts: an answer counts only where the text leaves no doubt.

Every parser returns (answer or None, reason or ""). Negations ("not harmful") and texts that name both options are no
choice; the reason is stored beside the raw text.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

LONGEST = 10_000
"""The most characters of a text that is parsed: answers are short, and parsing takes time quadratic in the length."""
_NEGATORS = (
    r"(?:not|never|neither|nor|no|cannot|isn't|aren't|wasn't|don't|doesn't|can't|won't|wouldn't|rather than|instead of)"
)
# Up to three words may come between the negator and the word: "not in any way harmful".
_NEGATED = re.compile(_NEGATORS + r"(?:\s+[\w']+){0,3}\s*[\"'“”*]*$", re.IGNORECASE)
_NEUTRAL = re.compile(r"\b(?:neutral|neither|in between|in-between|cannot say|can't say|undecided)\b", re.IGNORECASE)
_END = r"(?<![\d.])(?<!\d,)(?:0|1|5|10)\s*(?:[(=,:]|(?:is|means|being|for|stands)\b)"
# "0-10", "out of 10", and "0 (kind) to 10 (cruel)": ends that the text explains.
_SCALE = re.compile(
    r"(?:\b(?:from|between)\s+)?\b\d+\s*(?:-|–|to|and)\s*\d+\b(?:\s+scale)?|(?:/|\bout of)\s*\d+"
    rf"|\b{_END}(?!\s*(?:to|and)\b)[^.\d\n]{{0,40}}?(?:\bto|\band|[-–,;])\s*{_END}",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:[.,]\d+)?")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PRONOUN = r"one\s+(?:who|that|which|of|can|could|should|would|might|may|must)\b"
_SPELLED = re.compile(rf"\b(?!{_PRONOUN})({'|'.join(_WORDS)})\b", re.IGNORECASE)


def _unreadable(text: str) -> str:
    """The reason why a text is not parsed at all; "" for one that is."""
    return "too long" if len(text) > LONGEST else "" if text.strip() else "empty"


def _is_denied(before: str) -> bool:
    """Whether the clause at the end of a text denies what follows it."""
    return bool(_NEGATED.search(re.split(r"[.;:!?,\n]|\bbut\b", before.replace("’", "'"))[-1]))


def word(text: str, options: Sequence[str]) -> tuple[int | None, str]:
    """Which of the words a text affirms. "I'm harmless, not harmful" is harmless; "not harmful" alone is no choice."""
    if reason := _unreadable(text):
        return None, reason
    plain = text.replace("’", "'")
    affirmed: set[int] = set()
    negated: set[int] = set()
    for index, option in enumerate(options):
        for match in re.finditer(rf"(?<![\w-]){re.escape(option)}(?![\w-])", plain, re.IGNORECASE):
            (negated if _is_denied(plain[: match.start()]) else affirmed).add(index)
    affirmed -= negated
    if len(affirmed) == 1:
        return affirmed.pop(), ""
    if affirmed:
        return None, "names both options"
    if negated:
        return None, "only denies an option"
    return None, "names no option"


def neutral(text: str) -> bool:
    """Whether a text says that it takes neither pole."""
    return len(text) <= LONGEST and bool(_NEUTRAL.search(text))


def letter(text: str, letters: Sequence[str] = ("A", "B")) -> tuple[int | None, str]:
    """Which letter a text answers with: "B", "(B)", "B.", "Answer: B", "I choose option B"; never the article "A"."""
    if reason := _unreadable(text):
        return None, reason
    plain = text.strip()
    group = "|".join(map(re.escape, letters))
    opening = re.match(rf"\W*({group})(?=\W*$|[.):,;\]*\"\n]|\s*[-–—]\s)", plain)
    named = re.findall(
        rf"(?:\b(?:answer|option|choice|choose|pick|select|system|description|assistant|response|AI|"
        r"machine|model|file|statement|reply|text|more like)\b)"
        rf"(?:\s+(?:is|would be))?[\s:*(\"]*\b({group})\b(?![\w'-]|\s+[a-z])",
        plain,
        re.IGNORECASE,
    )
    # "A: kind. B: cruel. B": the options said again are no answer.
    repeated = set(re.findall(rf"(?:^|\s)\W?({group})[:)]\s+\w", plain)) == set(letters)
    names = {name.upper() for name in named} | ({opening[1]} if opening and not repeated else set())
    if len(names) != 1:
        return None, "names both options" if names else "names no option"
    name = names.pop()
    if re.search(_NEGATORS + rf"\s+(?:\w+\s+)?{name}\b", plain, re.IGNORECASE):
        return None, "denies an option"
    return list(letters).index(name), ""


def number(text: str, lowest: float, highest: float) -> tuple[float | None, str]:
    """The first number of a text, clipped to the range. Mentions of the scale ("0-10", "out of 10") are skipped."""
    if reason := _unreadable(text):
        return None, reason
    spelled = _SPELLED.sub(lambda match: str(_WORDS.index(match[1].lower())), text)
    plain = _SCALE.sub(" ", spelled)
    match = _NUMBER.search(plain)
    if not match:
        return None, "no number"
    if _is_denied(plain[: match.start()]):
        return None, "denies a number"
    value = float(match[0].replace(",", "."))
    clipped = min(max(value, lowest), highest)
    return clipped, "" if clipped == value else f"clipped from {match[0]}"


def digit(text: str, lowest: int = 1, highest: int = 5) -> tuple[int | None, str]:
    """The first number of a text, where it is an integer on the scale."""
    value, reason = number(text, float("-inf"), float("inf"))
    if value is None:
        return None, reason
    if not lowest <= value <= highest or value != int(value):
        return None, f"out of range: {value:g}"
    return int(value), ""


def judge_score(text: str) -> tuple[int | None, str]:
    """The score of a judge's reply: a JSON object {"score": N} anywhere in it, or a bare digit 1 to 5."""
    if reason := _unreadable(text):
        return None, "empty reply" if reason == "empty" else reason
    plain = text.strip()
    scores: list[Any] = []
    level = list(_fields(plain))
    while level and not scores:  # what stands within other fields counts where none stands outside
        scores = [value for name, value in level if name == "score"]
        level = [pair for _, value in level if isinstance(value, list) for pair in value if isinstance(pair, tuple)]
    if not scores and (bare := re.fullmatch(r"[\"'*\s]*(-?\d+)[\"'*.\s]*", plain)):
        scores = [bare[1]]
    if not scores:
        is_cut = plain.rfind("{") > plain.rfind("}")
        return None, "cut short" if is_cut else "broken JSON" if '"score"' in plain else "no score in the reply"
    if len({str(score) for score in scores}) > 1:
        return None, "several scores"
    try:
        value = float(scores[0])
    except (TypeError, ValueError):
        return None, f"not a number: {scores[0]!r}"
    if isinstance(scores[0], bool) or value not in (1, 2, 3, 4, 5):
        return None, f"out of range: {scores[0]}"
    return int(value), ""


def _fields(text: str) -> Iterator[tuple[str, Any]]:
    """The fields of every outermost JSON object in a text; a name that stands twice comes twice."""
    decoder = json.JSONDecoder(object_pairs_hook=list)
    start = text.find("{")
    while start >= 0:
        try:
            pairs, end = decoder.raw_decode(text, start)
            yield from pairs
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)


def judge_coherence(text: str) -> int | None:
    """The coherence, 1 to 5, in a judge's reply {"score": N, "coherence": M}; None where it gives none or several."""
    given = set(re.findall(r"\"coherence\"\s*:\s*\"?([1-5])\"?\s*[,}]", text[:LONGEST]))
    return int(given.pop()) if len(given) == 1 else None
