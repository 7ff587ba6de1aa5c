"""On how many training seeds a claim rests: intervals over questions say nothing of other seeds."""

from collections.abc import Iterable


def told(seeds: Iterable[int]) -> str:
    """The sentence that every study of trained models ends with."""
    found = sorted(set(seeds))
    if len(found) == 1:
        return (
            f"All of this rests on one training seed ({found[0]}): the intervals are over questions, of these very "
            "adapters. Another seed may say otherwise."
        )
    return (
        f"This rests on {len(found)} training seeds ({', '.join(map(str, found))}): the intervals are over questions, "
        "of each seed's adapters; what holds in one seed alone may be that seed's."
    )
