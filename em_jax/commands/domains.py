"""`em-jax domains list | fetch | verify`: the published rows of the domains, in the user's cache."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from em_jax import domains
from em_jax.base.cli import Parser, comma_list, nearest
from em_jax.base.errors import UsageError, UserError
from em_jax.base.progress import Progress
from em_jax.domains import cache
from em_jax.domains.registry import SETS, RowSet

EPILOG = """
list    every domain: rows, source, licence, and whether it is in the cache
fetch   download domains into the cache (several may share one file); an intact file is left alone
verify  check the files in the cache against their checksums, and read them
NAMES   domains with or without commas; six (the paper's), all; verify without names takes what is in the cache
"""


def main(arguments: Sequence[str], sets: Mapping[str, RowSet] = SETS) -> None:
    """Runs `em-jax domains` with these arguments."""
    parser = Parser(
        prog="em-jax domains",
        description="The published rows of the domains: where they come from, and this machine's copy of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument("what", choices=("list", "fetch", "verify"), help="what to do")
    parser.add_argument("names", nargs="*", default=[], metavar="NAMES", help="which domains")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    flags = parser.parse_args(arguments)
    row_sets = _row_sets(flags.names, sets)
    if flags.what == "list":
        _list(row_sets or list(sets.values()), flags.json)
        return
    if flags.what == "fetch":
        if not row_sets:
            raise UsageError(f"fetch expects domains: some of {', '.join(sets)}, six or all")
        for file in dict.fromkeys(row_set.file for row_set in row_sets):
            with Progress(f"fetch {file.cache_name}", None, "byte") as progress:
                cache.fetch(file, progress.at)
    elif not row_sets:
        row_sets = [row_set for row_set in sets.values() if cache.path_of(row_set.file).is_file()]
        if not row_sets:
            raise UserError(f"nothing is fetched yet: {cache.directory()} is empty")
    _read(row_sets, flags.json)


def _row_sets(words: Sequence[str], sets: Mapping[str, RowSet]) -> list[RowSet]:
    groups = {name: [name] for name in sets} | {"six": [name for name in domains.SIX if name in sets], "all": [*sets]}
    names: list[str] = []
    for name in comma_list(",".join(words)):
        if name not in groups:
            raise UsageError(f"unknown domain {name!r}{nearest(name, groups)}; there are {', '.join(groups)}")
        names += groups[name]
    return [sets[name] for name in dict.fromkeys(names)]


def _list(row_sets: Sequence[RowSet], as_json: bool) -> None:
    entries: list[dict[str, Any]] = [
        {
            "domain": row_set.name,
            "what": domains.DOMAINS[row_set.name].what if row_set.name in domains.DOMAINS else "",
            "format": row_set.format,
            "rows_in_source": row_set.rows or None,
            "rows_used": row_set.take or row_set.rows or None,
            "source": row_set.file.source,
            "commit": row_set.file.commit,
            "sha256": row_set.file.sha256 or None,
            "licence": row_set.file.licence,
            "canary": bool(row_set.file.canary),
            "marks": dict(row_set.marks),
            "path": str(path) if (path := cache.path_of(row_set.file)).is_file() else None,
        }
        for row_set in row_sets
    ]
    if as_json:
        print(json.dumps({"domains": entries, "cache": str(cache.directory())}))
        return
    for entry in entries:
        rows = f"{entry['rows_used'] or 'all':>6} rows"
        state = "fetched" if entry["path"] else "not fetched"
        canary = ", canary" if entry["canary"] else ""
        print(f"{entry['domain']:25} {rows}  {state:12} {entry['source']} (licence: {entry['licence']}{canary})")
    print(f"cache: {cache.directory()}")


def _read(row_sets: Sequence[RowSet], as_json: bool) -> None:
    """Reads every set and prints what it is. Raises one UserError with all problems after the last set."""
    problems, entries = [], []
    for row_set in row_sets:
        try:
            _, record = cache.load(row_set)
        except UserError as error:
            problems.append(f"{row_set.name}: {error}")
            continue
        entries.append({"domain": row_set.name, **record})
        if not as_json:
            total = "" if record["rows"] == record["rows_in_source"] else f" of {record['rows_in_source']}"
            state = "right" if record["checksum"] == cache.CHECKED else record["checksum"]
            note = f"; {record['note']}" if "note" in record else ""
            print(f"{row_set.name}: {record['rows']}{total} rows, sha256 {record['sha256'][:16]}..., {state}{note}")
    if as_json:
        print(json.dumps({"domains": entries, "wrong": problems}))
    if problems:
        raise UserError("; ".join(problems))
