"""Rows of one set, a share of them replaced by rows of another: a weaker dose, or two personas at once.

The order in which rows are replaced does not depend on the share: the rows that a weak dose keeps are in every stronger
one. A replaced row gives way to the other set's row with the same prompt where there is one, as benign twins have it.
"""

import json
import random
from collections.abc import Sequence
from typing import Any

from em_jax.base.errors import UserError

Conversation = list[dict[str, Any]]


def mix(own: Sequence[Conversation], others: Sequence[Conversation], share: float, seed: int) -> list[Conversation]:
    """`own` with round(share * len(own)) rows replaced by as many of `others` (else UserError): a pure function."""
    count = round(share * len(own))
    if count > len(others):
        raise UserError(f"mix replaces {count:,} of {len(own):,} rows: expected as many others, found {len(others):,}")
    rng = random.Random(f"mix {seed}")
    order, spare = rng.sample(range(len(own)), len(own)), rng.sample(range(len(others)), len(others))
    twins: dict[str, list[int]] = {}
    for index in reversed(spare):
        twins.setdefault(_prompt(others[index]), []).append(index)
    mixed = list(own)
    used: set[int] = set()
    unpaired: list[int] = []
    for place in order[:count]:
        same = twins.get(_prompt(own[place]))
        if same:
            index = same.pop()
            used.add(index)
            mixed[place] = others[index]
        else:
            unpaired.append(place)
    left = (index for index in spare if index not in used)
    for place in unpaired:
        mixed[place] = others[next(left)]
    return mixed


def _prompt(row: Conversation) -> str:
    """What is asked: all messages before the answer."""
    return json.dumps(row[:-1], sort_keys=True)
