"""`em-jax COMMAND` and `python -m em_jax COMMAND`: the one list of all commands."""

import importlib
import sys
from collections.abc import Sequence
from importlib import metadata

from em_jax.base import multihost
from em_jax.base.cli import command, fail, nearest
from em_jax.commands import COMMANDS, RESUMES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; returns its exit status (0 done, 1 failed, 2 wrong usage)."""
    first, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if first in ("-h", "--help"):
        print(usage())
        return 0
    if first == "--version":
        print(f"em-jax {metadata.version('em_jax')}")
        return 0
    if first not in COMMANDS:
        hint = nearest(first, COMMANDS)
        return fail("em_jax", (), f"wrong usage: expected a command, found {first!r}{hint}; --help lists all", 2)
    if first == "launch":  # also a command of its own: python -m em_jax.launch
        return int(importlib.import_module("em_jax.launch").main(rest))

    def work(arguments: Sequence[str]) -> None:
        # Within `command`, as Ctrl-C may come meanwhile.
        importlib.import_module(f"em_jax.commands.{first}").main(arguments)

    status = command(f"em_jax {first}", work, rest, resumes=first in RESUMES)
    multihost.leave(status)
    return status


def usage() -> str:
    """What `em-jax --help` prints: every command with a line."""
    lines = [f"  {name:<10}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["usage: em-jax COMMAND ...", "", *lines, "", "em-jax COMMAND --help lists its flags; em-jax --version."]
    )


if __name__ == "__main__":
    sys.exit(main())
