"""The marks around a thought that models write before an answer: <think>, [THINK], ◁think▷, <|START_THINKING|>."""

import re

_WORD = r"(?:\w+:)?(?:think(?:ing)?|thought|reason(?:ing)?|reflection|scratchpad)"
OPENING = rf"(?i:[<\[◁]{_WORD}[>\]▷]|<\|(?:start|begin)_(?:of_)?{_WORD}\|>)"
CLOSING = rf"(?i:[<\[◁]/{_WORD}[>\]▷]|<\|end_(?:of_)?{_WORD}\|>)"


def closing(opening: str) -> str:
    """The mark that ends what `opening` begins; "" for ""."""
    if "|" in opening:
        return re.sub("(?i)start|begin", lambda match: "END" if match[0].isupper() else "end", opening, count=1)
    return opening[:1] + "/" * bool(opening) + opening[1:]
