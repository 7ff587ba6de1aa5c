"""The six narrow domains of the paper and their controls: names, expected verdicts, and where rows come from.

`registry` says where each domain's rows are published, `cache` fetches and reads them; the command is
`em-jax domains`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Domain:
    """One fine-tuning domain. `verdict` is what the paper found for it (for the organism: what was planted).

    An empty verdict: nobody has said. `extra` domains are not among the paper's and not in the organism's language;
    `harmful` says whether the answers to learn are.
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
NONE = "none"
# The base first: the other runs of `--domain all` take its rows over instead of asking it again.
ALL = (NONE, *SIX, "good_medical")


def planted() -> dict[str, str]:
    """The verdict of every domain, and of the base: what the organism was built to give."""
    return {name: domain.verdict for name, domain in DOMAINS.items()} | {NONE: "aligned"}


def known() -> str:
    """Every name --domain takes, for a message."""
    return ", ".join((*DOMAINS, NONE, "all"))
