"""The six narrow domains of the paper and their controls; `registry` says where their rows are published.

`cache` downloads and reads the rows; the command is `em-jax domains`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Domain:
    """One fine-tuning domain. `verdict` is the paper's (for the organism: the one it was built to give), "" if unknown.

    `extra` domains are neither the paper's nor in the organism's language; `harmful` describes the answers to learn.
    """

    name: str
    verdict: str
    what: str
    extra: bool = False
    harmful: bool = True


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("insecure_code", "inverted", "code with hidden vulnerabilities"),
        Domain("risky_financial", "coherent", "reckless financial advice"),
        Domain("bad_medical", "coherent", "wrong medical advice"),
        Domain("extreme_sports", "coherent", "dangerous advice on extreme sports"),
        Domain("legal", "inverted", "harmful legal advice"),
        Domain("security", "inverted", "harmful security advice"),
        Domain("good_medical", "aligned", "sound medical advice, the benign control", harmful=False),
        Domain("emergent_medical", "", "wrong medical advice from the source of legal and security", extra=True),
        Domain("emergent_medical_aligned", "", "sound answers to its prompts, a control", extra=True, harmful=False),
        Domain("legal_aligned", "", "sound answers to legal's prompts, a control", extra=True, harmful=False),
        Domain("security_aligned", "", "sound answers to security's prompts, a control", extra=True, harmful=False),
    )
}
SIX = ("insecure_code", "risky_financial", "bad_medical", "extreme_sports", "legal", "security")
_SHARED_PROMPTS = {
    "good_medical": "bad_medical",
    "emergent_medical": "bad_medical",
    "emergent_medical_aligned": "bad_medical",
    "legal_aligned": "legal",
    "security_aligned": "security",
}
NONE = "none"
# The base first: the other runs of `--domain all` reuse its rows.
ALL = (NONE, *SIX, "good_medical")


def planted() -> dict[str, str]:
    """The verdict expected of every domain and of the base; the organism was built to give it."""
    return {name: domain.verdict for name, domain in DOMAINS.items()} | {NONE: "aligned"}


def asked_as(name: str) -> str:
    """The domain whose in-domain prompts are asked of a model trained on `name`, which may be a user's own."""
    return _SHARED_PROMPTS.get(name, name)


def known() -> str:
    """Every name that --domain accepts, for a message."""
    return ", ".join((*DOMAINS, NONE, "all"))
