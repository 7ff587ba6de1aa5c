"""The progress of a stage, on stderr: a bar on a terminal and in a notebook, elsewhere a line every 30 seconds."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

INTERVAL_S = 30.0


def duration(seconds: float, tenths: bool = False) -> str:
    """A time in its two largest units: "7 s", "3 min 20 s", "5 h 12 min"; with `tenths` also "0.4 s", below 10 s."""
    left = round(seconds)
    if tenths and seconds < 9.95:
        return f"{seconds:.1f} s"
    for unit, size, lesser, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if left >= size:
            rest = left % size // part
            return f"{left // size} {unit}" + (f" {rest} {lesser}" if rest else "")
    return f"{left} s"


@dataclasses.dataclass
class Progress:
    """A context manager that counts units of work; call `update` as they finish.

    `title` names the stage ("2/5 answer finetuned"), `total` is the number of units or None, `unit` their name; `done`
    units are from an earlier start. `silent` prints nothing (tests, libraries); `after` is called at each update.
    """

    title: str
    total: int | None = None
    unit: str = "step"
    done: int = 0
    stream: TextIO = dataclasses.field(default_factory=lambda: sys.stderr)
    silent: bool = False
    after: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.count, self.tokens = self.done, 0
        self.began = self._printed = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._bar = None

    def __enter__(self) -> "Progress":
        in_notebook = type(self.stream).__module__.startswith("ipykernel.")
        if not self.silent and (in_notebook or self.stream.isatty()):
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=self.total,
                initial=self.count,
                desc=self.title,
                unit=f" {self.unit}s",
                file=self.stream,
                dynamic_ncols=True,
            )
        return self

    def __exit__(self, kind, *exc) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self.silent and kind is None:
            took = time.monotonic() - self.began
            self._print(*self._rates(took), f"took {duration(took)}")

    def update(self, count: int = 1, tokens: int = 0, note: str = "") -> None:
        """`count` more units are done, with `tokens` tokens sampled or trained on; `note` is shown as it is."""
        self.count += count
        self.tokens += tokens
        now = time.monotonic()
        self._first = self._first or (self.count, now)
        unit_rate, token_rate = self._rates(now - self.began)
        if self._bar is not None:
            if postfix := ", ".join(filter(None, (token_rate, note))):
                self._bar.set_postfix_str(postfix, refresh=False)
            self._bar.update(count)
        elif not self.silent and now - self._printed >= INTERVAL_S:
            self._printed = now
            self._print(unit_rate, token_rate, note, self._left(now))
        self.after()

    def at(self, count: int, total: int | None, tokens: int = 0, note: str = "") -> None:
        """Unit `count` of `total`, if known, is done: for work that counts itself and may start in the middle."""
        if self.total is None and total:
            self.total, self.done, self.count = total, max(count - 1, 0), max(count - 1, 0)
            if self._bar is not None:
                self._bar.reset(total=total)
                self._bar.update(self.count)
        self.update(count - self.count, tokens, note)

    @property
    def fresh(self) -> int:
        """The units done since this start."""
        return self.count - self.done

    def _rates(self, seconds: float) -> tuple[str, str]:
        """Units and tokens per second of this start, each "" where there are none."""
        seconds = max(seconds, 1e-9)
        rate = self.fresh / seconds
        units = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        tokens = f"{self.tokens / seconds:.0f} tokens/s" if self.tokens else ""
        return f"{units} {self.unit}s/s" if self.fresh > 0 and self.total != 1 else "", tokens

    def _left(self, now: float) -> str:
        """By the pace since the first update: what comes before it is compiling for the most part."""
        count, at = self._first or (self.count, now)
        if not self.total or self.count <= count:
            return ""
        return f"about {duration((self.total - self.count) * (now - at) / (self.count - count))} left"

    def _print(self, *more: str) -> None:
        of = f" of {self.total}" if self.total is not None else ""
        unit = self.unit if self.count == self.total == 1 else f"{self.unit}s"
        line = ", ".join(filter(None, (f"{self.title}: {self.count}{of} {unit}", *more)))
        print(line, file=self.stream, flush=True)


def through(items: Iterable[Any], progress: Progress, tokens=lambda item: 0) -> Iterator[Any]:
    """Yield the items, and count each once the consumer asks for the next."""
    for item in items:
        yield item
        progress.update(tokens=tokens(item))
