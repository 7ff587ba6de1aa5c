"""Refuses regular expressions of an adapter's files whose matching might not end."""

import math
import re

MAX_PATTERN, MAX_NAME, MAX_WAYS = 1_000, 45, 100_000
"""Characters of a regular expression, characters of a module's name, and ways in which one may match the other."""


def problem_of(pattern: str) -> str | None:
    """Why an expression is not matched against modules' names, as the end of a sentence; None if it is acceptable."""
    plain = re.sub(r"\(\?(:|P<\w+>)", "(", re.sub(r"\\.", "x", pattern))
    repetitions, groups = len(re.findall(r"[*+?{]", plain)), 1 + plain.count("(")
    # A bound on the ways to match: every repetition may end at any character, every group take any alternative.
    ways_log = repetitions * math.log(MAX_NAME) + groups * math.log1p(plain.count("|") / groups)
    if len(plain) > MAX_PATTERN or re.search(r"\)[*+?{]", plain) or ways_log > math.log(MAX_WAYS):
        return "could take hours to match; expected a module's name, or three repetitions at most and none of a group"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression ({error})"
    return None
