"""`em-jax domains list | fetch | verify`: the published rows of the domains, in the user's cache."""

import argparse
from collections.abc import Mapping, Sequence

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
    flags = parser.parse_args(arguments)
    row_sets = _row_sets(flags.names, sets)
    if flags.what == "list":
        for row_set in row_sets or sets.values():
            file, rows = row_set.file, row_set.take or row_set.rows or "all"
            state = "fetched" if cache.path_of(file).is_file() else "not fetched"
            licence = f"licence: {file.licence}{', canary' if file.canary else ''}"
            print(f"{row_set.name:25} {rows:>6} rows  {state:12} {file.source} ({licence})")
        print(f"cache: {cache.directory()}")
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
    problems = []
    for row_set in row_sets:
        try:
            print(_read(row_set))
        except UserError as error:
            problems.append(f"{row_set.name}: {error}")
    if problems:
        raise UserError("; ".join(problems))


def _row_sets(words: Sequence[str], sets: Mapping[str, RowSet]) -> list[RowSet]:
    groups = {name: [name] for name in sets} | {"six": [name for name in domains.SIX if name in sets], "all": [*sets]}
    names: list[str] = []
    for name in comma_list(",".join(words)):
        if name not in groups:
            raise UsageError(f"unknown domain {name!r}{nearest(name, groups)}; there are {', '.join(groups)}")
        names += groups[name]
    return [sets[name] for name in dict.fromkeys(names)]


def _read(row_set: RowSet) -> str:
    """Reads a set; returns what it is, in a line. UserError where its file is missing or damaged."""
    _, record = cache.load(row_set)
    total = "" if record["rows"] == record["rows_in_source"] else f" of {record['rows_in_source']}"
    state = "right" if record["checksum"] == cache.CHECKED else record["checksum"]
    note = f"; {record['note']}" if "note" in record else ""
    return f"{row_set.name}: {record['rows']}{total} rows, sha256 {record['sha256'][:16]}..., {state}{note}"
