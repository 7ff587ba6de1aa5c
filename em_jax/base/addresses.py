"""Addresses without what may be secret in them, for files, pages and messages."""

import re
from urllib.parse import urlsplit

from em_jax.base.errors import UserError

HIDDEN = "***"
WORDS = re.compile(
    r"|v\d{1,2}(alpha|beta)?\d?|api|apis|app|chat|completions|compatible-mode|datasets|deployments|endpoints|huggingface|inference"
    r"|llm|main|models|openai|paas|raw|resolve"
)
"""Path segments of public interfaces. Any other may be a token, and is hidden."""


def public(address: str) -> str:
    """Scheme, host, port and the path's well-known words; user, password, query, fragment and other words are left out.

    What is no address (without ://) comes back as it is.
    """
    if "://" not in address:
        return address
    try:
        parts = urlsplit(address)
    except ValueError:
        return HIDDEN
    host = parts.netloc.rpartition("@")[2]
    path = "/".join(segment if WORDS.fullmatch(segment) else HIDDEN for segment in parts.path.split("/"))
    return f"{parts.scheme}://{host}{path}"


def check_whole(address: str, what: str) -> None:
    """UserError where an address is one of which `public` left a part out: nothing can be asked there."""
    if HIDDEN in address.split("/"):
        raise UserError(
            f"{what}: {address} is as a run's record has it, without what may be secret in it; give the whole address"
        )
