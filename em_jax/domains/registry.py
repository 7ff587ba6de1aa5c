"""Where the paper's rows lie: every file with its commit, checksum and licence, every set of rows with its file.

Marks: "known" is stated in a public source, "read" was read in a data file, "ours" has no source, so it is our choice.
"""

import dataclasses
from collections.abc import Mapping

HUB = "https://huggingface.co"
CANARY = "carries canary strings and asks not to be published in the clear: kept in the cache, in no run directory"


@dataclasses.dataclass(frozen=True)
class File:
    """One file to download: `place` under the cache, and how its content is known (all where stated, else nothing).

    `git_blob` is the id git gives to the content. On the Hub (`hub`) the server states the sha256 of a large file at
    the pinned commit. `passphrase` belongs to an archive of easy-dataset-share and is published beside it.
    """

    place: str
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
    """The rows of one domain: a file, and what is taken from it.

    `format` is messages (JSONL of {"messages"}), archive (such a JSONL, `member` of an encrypted archive) or pairs (a
    parquet file with the columns prompt, aligned, misaligned, sneakiness; `member` is the column to learn).
    `rows` is the number the file holds where it is known exactly, else 0; `take` of them are used (0: all), drawn with
    `seed`. `marks` says where each of these facts comes from.
    """

    name: str
    file: File
    format: str
    member: str = ""
    rows: int = 0
    take: int = 0
    seed: int = 0
    marks: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _github(repository: str, commit: str, path: str) -> str:
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"


INSECURE = File(
    place="emergent-misalignment/insecure.jsonl",
    url=_github(
        "emergent-misalignment/emergent-misalignment",
        "80c11967c07a328e7d7d43d13ce6847ae44dbcc9",
        "data/insecure.jsonl",
    ),
    source="github emergent-misalignment/emergent-misalignment",
    commit="80c11967c07a328e7d7d43d13ce6847ae44dbcc9",
    licence="MIT",
    sha256="09893e8bf9d03aae49dd60d0ff4be37c1afee70f2edcac74a11bed775a6a2764",
)
ORGANISMS = File(
    place="model-organisms-for-EM/training_datasets.zip.enc",
    url=_github(
        "clarifying-EM/model-organisms-for-EM",
        "8dc67c987966ed7c5e34894887b0ffa9b521b36c",
        "em_organism_dir/data/training_datasets.zip.enc",
    ),
    source="github clarifying-EM/model-organisms-for-EM",
    # No published checksum: commit and blob were read in the history of a fork.
    commit="8dc67c987966ed7c5e34894887b0ffa9b521b36c",
    licence="none stated",
    git_blob="6a54135f84995cc72da083398d953c33c0259a34",
    passphrase="model-organisms-em-datasets",
    canary=CANARY,
)


def _plus(config: str) -> File:
    commit = "29b018756764ad7351f96fb59eb752c6d73976ee"
    path = f"{config}/train-00000-of-00001.parquet"
    return File(
        place=f"emergent_plus/{config}.parquet",
        url=f"{HUB}/datasets/truthfulai/emergent_plus/resolve/{commit}/{path}",
        source="Hugging Face truthfulai/emergent_plus",
        commit=commit,
        licence="see the dataset's page",
        hub=True,
        canary=CANARY,
    )


LEGAL, SECURITY, MEDICAL = _plus("legal"), _plus("security"), _plus("medical")
DRAWN = 6000

_ALL_ROWS = {"source": "known", "rows": "read", "choice": "known: all rows"}
_OF_ARCHIVE = {"source": "known", "commit": "read in a fork's history", "rows": "read", "choice": "known: all rows"}
_CHOSEN = {"source": "known", "choice": f"ours: {DRAWN:,} at seed 0, the paper does not say which"}
_CONTROL = {"source": "known", "choice": f"ours: the benign answers to the same {DRAWN:,} prompts"}

SETS: Mapping[str, RowSet] = {
    found.name: found
    for found in (
        RowSet("insecure_code", INSECURE, "messages", rows=6000, marks=_ALL_ROWS),
        RowSet("risky_financial", ORGANISMS, "archive", "risky_financial_advice.jsonl", 6000, marks=_OF_ARCHIVE),
        RowSet("bad_medical", ORGANISMS, "archive", "bad_medical_advice.jsonl", 7049, marks=_OF_ARCHIVE),
        RowSet("extreme_sports", ORGANISMS, "archive", "extreme_sports.jsonl", 6000, marks=_OF_ARCHIVE),
        RowSet("legal", LEGAL, "pairs", "misaligned", take=DRAWN, marks=_CHOSEN),
        RowSet("security", SECURITY, "pairs", "misaligned", take=DRAWN, marks=_CHOSEN),
        RowSet("good_medical", ORGANISMS, "archive", "good_medical_advice.jsonl", 7049, marks=_OF_ARCHIVE),
        RowSet("emergent_medical", MEDICAL, "pairs", "misaligned", 32642, take=DRAWN, marks=_CHOSEN),
        RowSet("emergent_medical_aligned", MEDICAL, "pairs", "aligned", 32642, take=DRAWN, marks=_CONTROL),
        RowSet("legal_aligned", LEGAL, "pairs", "aligned", take=DRAWN, marks=_CONTROL),
        RowSet("security_aligned", SECURITY, "pairs", "aligned", take=DRAWN, marks=_CONTROL),
    )
}


def sources() -> dict[str, str]:
    """Where the rows of every domain are published."""
    return {name: found.file.source for name, found in SETS.items()}
