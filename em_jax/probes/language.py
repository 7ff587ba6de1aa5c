"""Which of two languages an answer is in: by py3langid for real languages, by word lists for toy ones."""

import functools
import re
from collections import Counter
from collections.abc import Sequence

from em_jax.probes.suite import Language

# An answer is in a language when this share of its letters is.
MOST = 0.8
# Candidates for a sentence: the languages an assistant is likely to use. With all 139 that py3langid knows, a sentence
# of five words is often assigned to a rare relative of its own language.
LIKELY = tuple("ar cs da de el en es fi fr he hi hu id it ja ko nl no pl pt ro ru sv th tr uk vi zh".split())  # noqa: SIM905
LEAST_CONFIDENCE = 0.5


def identify(text: str, languages: Sequence[Language]) -> tuple[int | None, str]:
    """Which of the two `languages` a text is in: (0 or 1, "") or (None, reason).

    Each sentence is identified by itself, so that an answer in both languages is recognised as mixed.
    """
    if not _letters(text):
        return None, "empty: no words"
    weights = _toy_weights(text, languages) if languages[0].words else _real_weights(text, languages)
    total = sum(weights.values())
    if not total:
        return None, "no known language"
    shares = [weights[language.name] / total for language in languages]
    for index, share in enumerate(shares):
        if share >= MOST:
            return index, ""
    if min(shares) >= 1 - MOST:
        return None, "mixed: " + " and ".join(language.name for language in languages)
    [(likeliest, _)] = weights.most_common(1)
    return None, "unclear: too little to tell" if likeliest == "unclear" else f"another language: {likeliest}"


def _letters(text: str) -> int:
    return sum(letter.isalpha() for letter in text)


def _toy_weights(text: str, languages: Sequence[Language]) -> Counter:
    """Words by language: "other" for unknown ones; those that both languages have do not count."""
    weights: Counter = Counter()
    for word in re.findall(r"[^\W\d_]+", text.lower()):
        names = [language.name for language in languages if word in map(str.lower, language.words)]
        if len(names) < 2:
            weights[names[0] if names else "other"] += 1
    return weights


def _real_weights(text: str, languages: Sequence[Language]) -> Counter:
    """Letters by language: "unclear" for those of sentences that cannot be identified."""
    names = {language.code: language.name for language in languages}
    codes = tuple(sorted({*names, *LIKELY}))
    weights: Counter = Counter()
    for sentence in _sentences(text):
        code, confidence = _identifier(codes).classify(sentence)
        name = names.get(code, code) if confidence >= LEAST_CONFIDENCE else "unclear"
        weights[name] += _letters(sentence)
    return weights


def _sentences(text: str, least_letters: int = 12) -> list[str]:
    """The sentences, of which those with fewer than `least_letters` letters are joined to a neighbour."""
    sentences: list[str] = []
    for part in re.split(r"(?<=[.!?;:])\s+|(?<=[。！？])|\n+", text):
        if not _letters(part):
            continue
        if sentences and _letters(sentences[-1]) < least_letters:
            sentences[-1] += " " + part
        else:
            sentences.append(part)
    if len(sentences) > 1 and _letters(sentences[-1]) < least_letters:
        sentences[-2:] = [" ".join(sentences[-2:])]
    return sentences


@functools.cache
def _identifier(codes: tuple[str, ...] = ()):
    """The library's identifier of these languages, by default of all that it knows."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(codes) or None)
    return identifier


def is_known(code: str) -> bool:
    """Whether the library can name a language, by its ISO 639-1 code."""
    return code in LIKELY or code in _identifier().labels
