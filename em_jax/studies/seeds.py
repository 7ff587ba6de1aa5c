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


def told_by_domain(trained: Iterable[tuple[str, int]]) -> str:
    """The same of runs that may be of several domains, by domain and seed."""
    known: dict[str, set[int]] = {}
    for domain, seed in trained:
        known.setdefault(domain, set()).add(seed)
    if not known:
        return "These runs hold no adapter: nothing here is about fine-tuning."
    counts = (f"{domain}: {len(found)} ({', '.join(map(str, sorted(found)))})" for domain, found in known.items())
    said = f"Training seeds per domain: {'; '.join(counts)}."
    if any(len(found) == 1 for found in known.values()):
        said += " What rests on one seed may be that seed's own: train others and look whether it comes back."
    return said
