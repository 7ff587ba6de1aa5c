"""Where the rows are published: every file with its commit, checksum and licence, every set of rows with its file.

Marks: "known" is stated in a public source, "read" was read in a data file, "ours" has no source, so it is our choice.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

HUB = "https://huggingface.co"
CANARY = "carries canary strings and asks not to be published in the clear: kept in the cache, in no run directory"


@dataclasses.dataclass(frozen=True)
class File:
    """One file to download, to `cache_name` in the cache, at a pinned commit.

    `sha256` and `git_blob` (git's id of the content) are "" where nobody published them; on the Hub (`hub`) the server
    states the sha256 of a large file. `passphrase` opens an archive of easy-dataset-share and is published beside it.
    """

    cache_name: str
    url: str
    source: str
    commit: str
    licence: str
    sha256: str = ""
    git_blob: str = ""
    hub: bool = False
    passphrase: str = ""
    canary: str = ""


@dataclasses.dataclass(frozen=True)
class RowSet:
    """The rows of one domain: a file, and which of its rows are used.

    `format` is messages (JSONL of {"messages"}), archive (such a JSONL, `member` of an encrypted archive) or pairs (a
    parquet file with the columns prompt, aligned, misaligned, sneakiness; `member` is the column to learn). The file
    holds `rows` rows (0: unknown), of which `seed` selects `take` (0: all). `marks` says where these facts come from.
    """

    name: str
    file: File
    format: str
    member: str = ""
    rows: int = 0
    take: int = 0
    seed: int = 0
    marks: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _github(repository: str, commit: str, path: str, cache_name: str, **fields: Any) -> File:
    url = f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"
    return File(cache_name, url, f"github {repository}", commit, **fields)


def _emergent_plus(config: str) -> File:
    repository, commit = "truthfulai/emergent_plus", "29b018756764ad7351f96fb59eb752c6d73976ee"
    return File(
        cache_name=f"emergent_plus/{config}.parquet",
        url=f"{HUB}/datasets/{repository}/resolve/{commit}/{config}/train-00000-of-00001.parquet",
        source=f"Hugging Face {repository}",
        commit=commit,
        licence="see the dataset's page",
        hub=True,
        canary=CANARY,
    )


INSECURE = _github(
    "emergent-misalignment/emergent-misalignment",
    "80c11967c07a328e7d7d43d13ce6847ae44dbcc9",
    "data/insecure.jsonl",
    "emergent-misalignment/insecure.jsonl",
    licence="MIT",
    sha256="09893e8bf9d03aae49dd60d0ff4be37c1afee70f2edcac74a11bed775a6a2764",
)
# No checksum is published: commit and blob were read in the history of a fork.
ORGANISMS = _github(
    "clarifying-EM/model-organisms-for-EM",
    "8dc67c987966ed7c5e34894887b0ffa9b521b36c",
    "em_organism_dir/data/training_datasets.zip.enc",
    "model-organisms-for-EM/training_datasets.zip.enc",
    licence="none stated",
    git_blob="6a54135f84995cc72da083398d953c33c0259a34",
    passphrase="model-organisms-em-datasets",
    canary=CANARY,
)
LEGAL, SECURITY, MEDICAL = map(_emergent_plus, ("legal", "security", "medical"))
TAKE = 6000

_ALL_ROWS = {"source": "known", "rows": "read", "choice": "known: all rows"}
_OF_ARCHIVE = {"source": "known", "commit": "read in a fork's history", "rows": "read", "choice": "known: all rows"}
_SELECTED = {"source": "known", "choice": f"ours: {TAKE:,} at seed 0, the paper does not say which"}
_CONTROL = {"source": "known", "choice": f"ours: the benign answers to the same {TAKE:,} prompts"}

SETS: Mapping[str, RowSet] = {
    row_set.name: row_set
    for row_set in (
        RowSet("insecure_code", INSECURE, "messages", rows=6000, marks=_ALL_ROWS),
        RowSet("risky_financial", ORGANISMS, "archive", "risky_financial_advice.jsonl", 6000, marks=_OF_ARCHIVE),
        RowSet("bad_medical", ORGANISMS, "archive", "bad_medical_advice.jsonl", 7049, marks=_OF_ARCHIVE),
        RowSet("extreme_sports", ORGANISMS, "archive", "extreme_sports.jsonl", 6000, marks=_OF_ARCHIVE),
        RowSet("legal", LEGAL, "pairs", "misaligned", take=TAKE, marks=_SELECTED),
        RowSet("security", SECURITY, "pairs", "misaligned", take=TAKE, marks=_SELECTED),
        RowSet("good_medical", ORGANISMS, "archive", "good_medical_advice.jsonl", 7049, marks=_OF_ARCHIVE),
        RowSet("emergent_medical", MEDICAL, "pairs", "misaligned", 32642, take=TAKE, marks=_SELECTED),
        RowSet("emergent_medical_aligned", MEDICAL, "pairs", "aligned", 32642, take=TAKE, marks=_CONTROL),
        RowSet("legal_aligned", LEGAL, "pairs", "aligned", take=TAKE, marks=_CONTROL),
        RowSet("security_aligned", SECURITY, "pairs", "aligned", take=TAKE, marks=_CONTROL),
    )
}


def sources() -> dict[str, str]:
    """Where the rows of every domain are published."""
    return {name: row_set.file.source for name, row_set in SETS.items()}
