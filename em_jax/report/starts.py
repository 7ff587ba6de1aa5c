"""Where the starts of a run differ: other versions, another commit or other devices than the start before."""

from collections.abc import Iterator
from typing import Any

from em_jax.report.reading import as_object


def changes(provenance: dict[str, Any]) -> list[str]:
    """A sentence for each start, of those on record, that ran with something else than the one before it."""
    starts = provenance.get("starts")
    records = [as_object(start) for start in (starts if isinstance(starts, list) else [])]
    if not records:
        return []
    records[-1] = {**provenance, "time": records[-1].get("time")}  # the latest start's are the record's own
    return [
        f"The start of {now.get('time')} ran with other {'; '.join(differing)}."
        for before, now in zip(records, records[1:])
        if (differing := list(_differing(before, now)))
    ]


def _differing(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name, title in (("versions", "versions"), ("git", "code"), ("devices", "devices")):
        one, other = as_object(before.get(name)), as_object(now.get(name))
        if not (one and other):
            continue
        fields = [field for field in sorted({*one, *other}) if one.get(field) != other.get(field)]
        if fields:
            yield f"{title}: {', '.join(f'{field} {one.get(field)} -> {other.get(field)}' for field in fields)}"
