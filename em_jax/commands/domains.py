"""`em-jax domains list | fetch | verify`: the published rows of the domains, in the user's cache."""

import argparse
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from em_jax import domains
from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError, UserError
from em_jax.base.progress import Progress
from em_jax.domains import cache
from em_jax.domains.registry import SETS, File, RowSet

EPILOG = """
list    every domain: rows, source, licence, and whether it is in the cache
fetch   bring domains into the cache (several may share one file); what is there and right is left alone
verify  check what is in the cache against its checksums, and read it
NAMES   domains with or without commas; six (the paper's), all; verify without names takes what is in the cache
"""


def parser() -> Parser:
    """The flags of the command."""
    made = Parser(
        prog="em-jax domains",
        description="The published rows of the domains: where they come from, and this machine's copy of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    made.add_argument("what", choices=("list", "fetch", "verify"), help="what to do")
    made.add_argument("names", nargs="*", metavar="NAMES", help="which domains")
    made.add_argument("--json", action="store_true", help="one JSON object on stdout")
    made.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    return made


def main(arguments: Sequence[str], sets: Mapping[str, RowSet] = SETS) -> None:
    """Do what was asked for and print it."""
    flags = parser().parse_args(arguments)
    names = _names(flags.names, sets)
    if flags.what == "list":
        _list([sets[name] for name in names or sets], flags.json)
        return
    if flags.what == "fetch" and not names:
        raise UsageError(f"fetch expects domains: some of {', '.join(sets)}, six or all")
    if flags.what == "verify" and not names:
        names = [name for name, found in sets.items() if cache.path_of(found.file).is_file()]
        if not names:
            raise UserError(f"nothing is fetched yet: {cache.directory()} is empty")
    if flags.what == "fetch":
        for file in dict.fromkeys(sets[name].file for name in names):
            _fetch(file)
    _read([sets[name] for name in names], flags.json)


def _names(words: Sequence[str], sets: Mapping[str, RowSet]) -> list[str]:
    found: list[str] = []
    for name in (part.strip() for word in words for part in word.split(",") if part.strip()):
        groups = {"all": list(sets), "six": [six for six in domains.SIX if six in sets]}
        if name not in groups and name not in sets:
            near = difflib.get_close_matches(name, (*sets, *groups), n=1, cutoff=0.0)
            raise UsageError(f"unknown domain {name!r}; the nearest is {near[0]!r}, of {', '.join(sets)}, six, all")
        found += groups.get(name, [name])
    return list(dict.fromkeys(found))


def _list(sets: Sequence[RowSet], as_json: bool) -> None:
    lines: list[dict[str, Any]] = []
    for found in sets:
        place = cache.path_of(found.file)
        lines.append(
            {
                "domain": found.name,
                "what": domains.DOMAINS[found.name].what if found.name in domains.DOMAINS else "",
                "format": found.format,
                "rows_in_source": found.rows or None,
                "rows_used": found.take or found.rows or None,
                "source": found.file.source,
                "commit": found.file.commit,
                "sha256": found.file.sha256 or None,
                "licence": found.file.licence,
                "canary": bool(found.file.canary),
                "marks": dict(found.marks),
                "path": str(place) if place.is_file() else None,
            }
        )
    if as_json:
        print(json.dumps({"domains": lines, "cache": str(cache.directory())}))
        return
    for line in lines:
        used = f"{line['rows_used'] or 'all':>6} rows"
        state = "fetched" if line["path"] else "not fetched"
        canary = ", canary" if line["canary"] else ""
        print(f"{line['domain']:25} {used}  {state:12} {line['source']} (licence: {line['licence']}{canary})")
    print(f"cache: {cache.directory()}")


def _fetch(file: File) -> None:
    with Progress(f"fetch {file.place}", None, "byte") as progress:

        def at(got: int, total: int | None) -> None:
            if progress.total is None and total:
                progress.at(got, total)
            else:
                progress.update(got - progress.count)

        cache.fetch(file, at)


def _read(sets: Sequence[RowSet], as_json: bool) -> None:
    """Read every set and say what it is. All problems are told; UserError after the last one."""
    wrong, lines = [], []
    for found in sets:
        try:
            record = cache.load(found).record
        except UserError as error:
            wrong.append(f"{found.name}: {error}")
            continue
        lines.append({"domain": found.name, **record})
        if not as_json:
            of = "" if record["rows"] == record["rows_in_source"] else f" of {record['rows_in_source']}"
            note = f"; {record['note']}" if "note" in record else ""
            print(f"{found.name}: {record['rows']}{of} rows, sha256 {record['sha256'][:16]}..., right{note}")
    if as_json:
        print(json.dumps({"domains": lines, "wrong": wrong}))
    if wrong:
        raise UserError("; ".join(wrong))
