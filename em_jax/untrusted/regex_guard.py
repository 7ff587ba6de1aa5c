"""What a regular expression in a stranger's file may ask for: a match that comes to an end."""

import math
import re

LONGEST_PATTERN, LONGEST_NAME, MOST_WAYS = 1_000, 45, 100_000
"""Characters of a regular expression and of a module's name, and how many ways of matching one with the other."""


def problem_of(pattern: str) -> str | None:
    """Why an expression is not matched against modules' names, as the rest of a sentence; None where it is fine."""
    if ways(pattern) > MOST_WAYS:
        return (
            "could take hours to match; expected a module's name, or a regular expression with three repetitions at "
            "most and none of a group"
        )
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression ({error})"
    return None


def ways(pattern: str) -> float:
    """A bound on the ways in which a regular expression can be laid on a module's name, each of which may be tried."""
    plain = re.sub(r"\(\?(:|P<\w+>)", "(", re.sub(r"\\.", "x", pattern))
    if len(plain) > LONGEST_PATTERN or re.search(r"\)[*+?{]", plain):
        return math.inf
    repeated, groups = len(re.findall(r"[*+?{]", plain)), 1 + plain.count("(")
    return LONGEST_NAME**repeated * (1 + plain.count("|") / groups) ** groups
