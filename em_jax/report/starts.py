"""Where the starts of a run differ: other versions, another commit or other devices than the start before."""

from typing import Any

from em_jax.report.reading import as_object


def changes(provenance: dict[str, Any]) -> list[str]:
    """A sentence for each start, of those on record, that ran with something else than the one before it."""
    starts = provenance.get("starts")
    records = [as_object(start) for start in (starts if isinstance(starts, list) else [])]
    if not records:
        return []
    records[-1] = {**provenance, "time": records[-1].get("time")}  # the latest start's are the record's own
    sentences = []
    for before, now in zip(records, records[1:]):
        differing = []
        for name, title in (("versions", "versions"), ("git", "code"), ("devices", "devices")):
            one, other = as_object(before.get(name)), as_object(now.get(name))
            fields = [field for field in sorted({*one, *other}) if one.get(field) != other.get(field)]
            if one and other and fields:
                changed = ", ".join(f"{field} {one.get(field)} -> {other.get(field)}" for field in fields)
                differing.append(f"{title}: {changed}")
        if differing:
            sentences.append(f"The start of {now.get('time')} ran with other {'; '.join(differing)}.")
    return sentences
