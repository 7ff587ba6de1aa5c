"""Cases of hostile input, and the watch over each: success or one clear line, soon, in little memory, nothing outside.

Cases are mostly valid files with a few things wrong in them: random bytes are refused by the first parser they meet.
"""

import copy
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

from em_jax.base.errors import UserError
from em_jax.base.sanitize import sanitize
from em_jax.untrusted import chat_template

SECONDS = 5.0
MEGABYTES = 500
LONGEST_LINE = 3_000
TRIED: Counter[str] = Counter()
"""How many cases of each test were tried in this process."""
WORST = {"seconds": 0.0, "megabytes": 0.0}

RAW = {
    "@deep list@": "[" * 900 + "]" * 900,
    "@deeper list@": "[" * 100_000 + "]" * 100_000,
    "@deep object@": '{"a":' * 900 + "1" + "}" * 900,
    "@unclosed@": "[" * 100_000,
    "@digits@": "9" * 5_000,
    "@many digits@": "-" + "9" * 4_000,
    "@huge@": "1e999999",
    "@twice@": '{"a": 1, "a": 2}',
}
"""Text that json.dumps does not write, by the string that stands in its place."""
VALUES = st.sampled_from(
    [
        *RAW,
        *(None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 2**64, 10**30, -(10**18)),
        *(0.5, -0.0, 1e308, 1e-320, float("inf"), float("-inf"), float("nan")),
        *("", " ", "1", "-1", "true", "null", "NaN", "\0", "\n", "a\nb\r\nc", "\x1b[2J\x1b]0;x\x07", "\u202eabc\u2066"),
        *("\ud800", "\udfff\ud800", "\ufeff", "\u2028", "\U000e0041", "e\u0301" * 50, "x" * 100_000, "\n" * 1_000),
        *("../../outside", "/tmp/outside", "..", ".", "a/../../b", "~", "C:\\outside", "file:///etc/passwd", "con\0x"),
        *("{", "{}", "{0}", "%s%n", "${jndi:x}", "<script>planted()</script>", "(a+)+$", "(", "[", "\\", "'", '"'),
        *([], {}, [[]], [None], [{}], {"": None}, {"a": {"a": {"a": []}}}, [0] * 10_000, [-1, -1], ["a", 1, None]),
        {"\x1b[31m\n": 1},
        {"__class__": "x", "__proto__": {}},
    ]
)
NAMES = st.sampled_from(
    ["", "\n", "\x1b[2J", "\ud800", "\u202e", "__metadata__", "a", "..", "../x", "x" * 10_000, "\0"]
)
EDITS = st.sampled_from(["replace"] * 3 + ["remove", "rename", "double", "add", "swap", "wrap"])
BYTES = st.sampled_from(
    [b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r\n", b"{", b"}", b"[", b'"', b"\\", b"\xed\xa0\x80"]
)


def amounts(cases: int) -> Any:
    """Runs a test twice: a tenth of its cases in the ordinary run, all of them with `-m long`."""
    whole = pytest.param(cases, marks=pytest.mark.long)
    return pytest.mark.parametrize("cases", [-(-cases // 10), whole])


def attempt(name: str, cases: int, made: st.SearchStrategy, directory: Path, act: Callable[[Any], Any]) -> Counter[str]:
    """Let `act` deal with `cases` cases; how many were taken and how many refused in one clear line."""
    ended: Counter[str] = Counter()

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(made)
    def one(case):
        try:
            refused = _refused(case, directory, act)
        except BaseException as error:
            raise AssertionError(
                f"{type(error).__name__} for the case {_shortened(case)}: {str(error)[:500]}"
            ) from error
        ended["refused" if refused else "taken"] += 1
        TRIED[name] += 1

    one()
    assert ended.total() >= cases, f"{name}: only {ended.total()} different cases of {cases}"
    return ended


def _shortened(case: Any) -> str:
    text = repr(case)
    return text if len(text) < 2_000 else f"{text[:1_500]} ... {text[-400:]}"


def _refused(case: Any, directory: Path, act: Callable[[Any], Any]) -> bool:
    with watched(directory):
        try:
            act(case)
        except UserError as error:
            line = str(error)
            assert line.strip() and len(line) <= LONGEST_LINE, f"{len(line)} characters: {line[:200]!r}"
            assert "\n" not in line and sanitize(line) == line, f"not one clear line: {line[:500]!r}"
            return True
    return False


@contextmanager
def watched(directory: Path) -> Iterator[None]:
    """Fails where the body takes too long or too much memory, or touches what lies outside `directory`."""

    def too_long(number, frame):
        raise AssertionError(f"no end after {SECONDS} s of work")

    before_handler = signal.signal(signal.SIGVTALRM, too_long)
    before = _peak_kilobytes(reset=True)
    _watch.touched = []
    _watch.inside = (os.path.realpath(directory), os.devnull)
    # Of the processor's time: others may be at work, and the timer of the clock is pytest's.
    began, worked = time.monotonic(), time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before_handler)
        touched, _watch.inside = _watch.touched, ()
    # The shorter one: a thread that an earlier case left behind works for itself.
    seconds = min(time.monotonic() - began, time.process_time() - worked)
    megabytes = (_peak_kilobytes() - before) / 1024
    WORST["seconds"], WORST["megabytes"] = max(WORST["seconds"], seconds), max(WORST["megabytes"], megabytes)
    assert not touched, f"touched outside {directory}: {touched}"
    assert seconds < SECONDS, f"{seconds:.1f} s"
    assert megabytes < MEGABYTES, f"{megabytes:.0f} MB more"


def _peak_kilobytes(reset: bool = False) -> int:
    """The most memory this process has held, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


class _Watch:
    """Sees every file that Python opens to write, moves or removes, every program started and every address called."""

    inside: tuple[str, ...] = ()
    touched: list[str] = []

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.inside:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            self._see(event, [path] if writes else [])
        elif event in ("os.mkdir", "os.remove", "os.rmdir"):
            self._see(event, arguments[:1], arguments[-1])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._see(event, arguments[:2])
        elif event in ("subprocess.Popen", "os.posix_spawn") and tuple(arguments[1]) == chat_template.COMMAND:
            pass  # the chat template's own process, which can write no file
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"):
            self.touched.append(f"{event} {arguments!r:.200}")

    def _see(self, event: str, paths: Any, folder: Any = -1) -> None:
        """`folder` is the descriptor of the directory that a path is relative to, where it is a number from 0 on."""
        for path in paths:
            if isinstance(path, int):
                continue
            beside = os.readlink(f"/proc/self/fd/{folder}") if type(folder) is int and folder >= 0 else ""
            real = os.path.realpath(os.path.join(beside, os.fsdecode(path)))
            if not any(real == place or real.startswith(place + os.sep) for place in self.inside):
                self.touched.append(f"{event} {real}")


_watch = _Watch()
sys.addaudithook(_watch)
# What a library keeps in the temporary directory is made before any case.
tempfile.gettempdir()


@st.composite
def spoiled(draw, value: Any, most: int = 3, start: tuple = ()) -> Any:
    """A JSON value with up to `most` things wrong in it: gone, of another type, huge, renamed, doubled or swapped."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, most))):
        places = list(_places(value))
        if not places:
            return draw(VALUES)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(
            st.sampled_from(["replace", "replace", "replace", "remove", "rename", "double", "add", "swap", "wrap"])
        )
        if what == "replace":
            holder[key] = copy.deepcopy(draw(VALUES))
        elif what == "remove":
            del holder[key]
        elif what == "rename" and isinstance(holder, dict):
            holder[draw(NAMES)] = holder.pop(key)
        elif what == "double" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif what == "add" and isinstance(holder, dict):
            holder[draw(NAMES)] = copy.deepcopy(draw(VALUES))
        elif what == "swap":
            other, place = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = copy.deepcopy(other[place])
        else:
            holder[key] = [holder[key]]
    return value if draw(st.integers(0, 40)) else draw(VALUES)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def as_json(value: Any) -> bytes:
    """A value as JSON text, with what stands for text that json.dumps does not write put in."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode()


@st.composite
def damaged(draw, data: bytes, always: bool = False) -> bytes:
    """Bytes, now and then cut short, with a byte changed, put in, left out or repeated, or in another encoding."""
    if not always and draw(st.integers(0, 3)):
        return data
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    length = draw(st.integers(1, 16))
    what = draw(st.integers(0, 7))
    if what == 0:
        return data[:at]
    if what == 1:
        return data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :] if data else b"\xff"
    if what == 2:
        return data[:at] + draw(BYTES) * length + data[at:]
    if what == 3:
        return data[:at] + data[at + length :]
    if what == 4:
        return data[: at + length] + data[at:]
    if what == 5:
        return draw(BYTES) + data
    if what == 6:
        return data.decode("latin-1").encode("utf-16")
    return draw(st.binary(max_size=64))


@st.composite
def json_file(draw, value: Any, most: int = 3) -> bytes:
    """A JSON file with things wrong in its fields, its text, or both."""
    return draw(damaged(as_json(draw(spoiled(value, most)))))


@st.composite
def jsonl_file(draw, rows: list[dict], most: int = 3) -> bytes:
    """A file of JSON lines with things wrong in its rows, their text, or both."""
    value = draw(spoiled(rows, most))
    lines = value if isinstance(value, list) else [value]
    return draw(damaged(b"".join(as_json(line) + b"\n" for line in lines)))


@st.composite
def text_file(draw, text: str, pieces: list[str], most: int = 3) -> bytes:
    """A file of text lines with lines gone, doubled, swapped, or their part after "=" another one of `pieces`."""
    lines = text.split("\n")
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, max(len(lines) - 1, 0)))
        what = draw(st.integers(0, 5))
        if not lines or what == 0:
            lines.insert(at, draw(st.sampled_from(pieces)))
        elif what == 1:
            del lines[at]
        elif what == 2:
            lines.insert(at, lines[at])
        elif what == 3:
            lines[at] = draw(st.sampled_from(pieces))
        else:
            name, equals, _ = lines[at].partition("=")
            lines[at] = name + equals + " " + draw(st.sampled_from(pieces))
    return draw(damaged("\n".join(lines).encode("utf-8", "surrogatepass")))
