"""What every command shares: flags with one-line errors, signals, and the exit status."""

import argparse
import difflib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from em_jax.base import errors, signals
from em_jax.base.errors import Unfinished, UsageError, UserError
from em_jax.base.sanitize import sanitize


class Stopped(BaseException):
    """SIGTERM; not an Exception, so that nothing on the way handles it as a failure."""


class Parser(argparse.ArgumentParser):
    """argparse with --verbosity that raises UsageError with one line and never guesses at a shortened flag."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)
        # A value may begin with a minus and a digit, as a list of numbers does: no flag does.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        # What the types below say of a flag reads as the other errors do: "--limit expects 1 or more, found 0".
        raise UsageError(re.sub(r"^argument (\S+): (?=expects )", r"\1 ", message.replace("\n", " ")))

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        """As argparse's; the error for an unknown flag names the nearest known one."""
        if "--verbosity" not in self._option_string_actions:
            self.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
        empty = [word for word in arguments if word.startswith("--") and word.endswith("=--")]
        if empty:  # argparse takes that value for the end of the flags, and gives none
            raise UsageError(f"expected a value in {empty[0]!r}")
        flags, unknown = self.parse_known_args(arguments)
        if not unknown:
            return flags
        first = unknown[0].split("=")[0]
        if not first.startswith("--"):
            raise UsageError(f"expected flags, found {first!r}; --help lists them")
        raise UsageError(f"unknown flag {first}{nearest(first, self._option_string_actions)}; --help lists them")


def comma_list(text: str) -> list[str]:
    """The items of a flag that takes several with commas; empty ones are left out."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes a whole number of this range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", text) or int(text) < least or (most is not None and int(text) > most):
            limits = f"{least} or more" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"expects {limits}, found {text}")
        return int(text)

    return parse


def whole_numbers(text: str) -> tuple[int, ...]:
    """The type of a flag that takes whole numbers from 0 on, each of which counts once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"expects a whole number, or several with commas, found {text!r}")
    return tuple(dict.fromkeys(map(int, parts)))


def one_of(*names: str) -> Callable[[str], str]:
    """The type of a flag that takes one of these names."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expects one of {', '.join(filter(None, names))}, found {text!r}")
        return text

    return parse


def some_of(*names: str) -> Callable[[str], list[str]]:
    """The type of a flag that takes one or several of these names with commas."""

    def parse(text: str) -> list[str]:
        chosen = comma_list(text)
        if not chosen or not set(chosen) <= set(names):
            raise argparse.ArgumentTypeError(f"expects some of {', '.join(names)}, found {text!r}")
        return chosen

    return parse


def count_flag(default: int, least: int, words: str, most: int | None = None) -> dict[str, Any]:
    """argparse's options of a flag with a whole number of this range; `words` say what is counted."""
    return {"type": whole(least, most), "default": default, "metavar": "N", "help": f"{words} (default {default})"}


def repeated_flag(metavar: str, words: str) -> dict[str, Any]:
    """argparse's options of a flag that may be given several times, by default never."""
    return {"action": "append", "default": [], "metavar": metavar, "help": words}


def nearest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean X?" where one of the known words is near, else ""."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""


def command(
    name: str, work: Callable[[Sequence[str]], None], arguments: Sequence[str], *, resumes: bool = False
) -> int:
    """Run a command; returns its exit status and prints one line for a failure.

    The status is 0 done, 1 failed, 2 wrong usage, 130 interrupted by Ctrl-C.
    Where a command `resumes`, the line of a failure ends with the command that continues the work.
    """
    python = os.path.relpath(sys.executable)
    python = sys.executable if python.startswith(os.pardir) else python
    again = f"; go on with: {python} -m {name} {' '.join(map(_word, arguments))}" if resumes else ""
    try:
        if not _verbose(arguments):
            # Threads of a library may raise more once it has failed; the failure itself is reported.
            sys.unraisablehook = lambda unraisable: None
        with signals.on_sigterm(_stop), errors.translate_errors():
            work(arguments)
            sys.stdout.flush()
        return 0
    except UsageError as error:
        return fail(name, arguments, f"wrong usage: {error}", 2)
    except UserError as error:
        return fail(name, arguments, str(error), 1, again if isinstance(error, Unfinished) else "")
    except (KeyboardInterrupt, Stopped) as error:
        word = "interrupted" if isinstance(error, KeyboardInterrupt) else "asked to stop (SIGTERM)"
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        return fail(name, arguments, f"{word}; what is done is kept", status, again)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own last flush
        return 1
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return fail(name, arguments, f"{type(error).__name__}: {first[:300]} (--verbosity=1 shows where)", 1, again)


def _stop(number, frame):
    """SIGTERM ends the run as Ctrl-C does: files are whole at every moment, so nothing else needs saving."""
    raise Stopped


def _word(argument: str) -> str:
    """An argument as a shell reads it back; what does not print is written as bytes, so that it stays on its line."""
    if argument.isprintable():
        return shlex.quote(argument)
    escaped = {text: "".join(f"\\{byte:03o}" for byte in os.fsencode(text)) for text in argument}
    parts = (text if text.isprintable() and text not in "\\'" else escaped[text] for text in argument)
    return f"$'{''.join(parts)}'"


def fail(name: str, arguments: Sequence[str], line: str, status: int, again: str = "") -> int:
    """Print the line of a failure, its end `again` as it is, with --verbosity after a traceback; returns the status."""
    if _verbose(arguments):
        traceback.print_exc()
    # A module's name where it is one, else the command as it is typed.
    print(
        f"{name.replace('em_jax ', 'em-jax ')}: {sanitize(' '.join(line.split()))}{again}", file=sys.stderr, flush=True
    )
    return status


def _verbose(arguments: Sequence[str]) -> bool:
    words = " ".join(arguments).replace("--verbosity=", "--verbosity ").split()
    return any(flag == "--verbosity" and value != "0" for flag, value in zip(words, words[1:]))
