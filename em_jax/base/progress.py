"""How far a stage is: a bar on a terminal, one line every 30 seconds elsewhere; always on stderr."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

EVERY = 30.0


def duration(seconds: float) -> str:
    """A time in the two units that say enough: "7 s", "3 min 20 s", "5 h 12 min", "2 d 3 h"."""
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    for unit, size, lesser, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if left >= size:
            rest = left % size // part
            return f"{left // size} {unit}" + (f" {rest} {lesser}" if rest else "")
    raise AssertionError(left)


class Progress:
    """Counts one piece of work. Use as a context manager; call `update` as pieces finish.

    `title` names the stage ("2/5 answer finetuned"), `total` is the number of pieces or None, `unit` their name;
    `done` pieces were kept from an earlier start. `silent` shows nothing (tests, libraries); `after` is called at
    each update.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "step",
        done: int = 0,
        stream: TextIO | None = None,
        silent: bool = False,
        after: Callable[[], object] = lambda: None,
    ):
        self.title, self.total, self.unit, self.count = title, total, unit, done
        self.tokens = 0
        self.began = time.monotonic()
        self._stream = sys.stderr if stream is None else stream
        self._silent = silent
        self._after = after
        self._kept = done
        self._said = self.began
        self._bar = None

    def __enter__(self) -> "Progress":
        if not self._silent and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total,
                initial=self.count,
                desc=self.title,
                unit=f" {self.unit}s",
                file=self._stream,
                leave=True,
                dynamic_ncols=True,
            )
        return self

    def __exit__(self, kind, *exc) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self._silent and kind is None:
            took = time.monotonic() - self.began
            self._say(", ".join(part for part in (*self._rates(took), f"took {duration(took)}") if part))

    def update(self, count: int = 1, tokens: int = 0, note: str = "") -> None:
        """`count` more pieces are done, in which `tokens` tokens were made or trained on; `note` is shown as it is."""
        self.count += count
        self.tokens += tokens
        now = time.monotonic()
        pieces, tokens_made = self._rates(now - self.began)
        if self._bar is not None:
            if shown := ", ".join(part for part in (tokens_made, note) if part):
                self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(count)
        elif not self._silent and now - self._said >= EVERY:
            self._said = now
            self._say(", ".join(part for part in (pieces, tokens_made, note, self._left(now)) if part))
        self._after()

    def at(self, count: int, total: int, tokens: int = 0, note: str = "") -> None:
        """Piece number `count` of `total` is done: for work that counts for itself and may begin in the middle."""
        if self.total is None:
            self.total, self._kept, self.count = total, count - 1, count - 1
            if self._bar is not None:
                self._bar.reset(total=total)
                self._bar.update(self.count)
        self.update(count - self.count, tokens, note)

    @property
    def fresh(self) -> int:
        """The pieces done since this start."""
        return self.count - self._kept

    def _rates(self, seconds: float) -> tuple[str, str]:
        """Pieces and tokens per second of this start, "" for what there is none of."""
        seconds = max(seconds, 1e-9)
        rate = self.fresh / seconds
        pieces = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        return (
            f"{pieces} {self.unit}s/s" if self.fresh > 0 and self.total != 1 else "",
            f"{self.tokens / seconds:.0f} tokens/s" if self.tokens else "",
        )

    def _left(self, now: float) -> str:
        if not self.total or self.fresh <= 0:
            return ""
        return f"about {duration((self.total - self.count) * (now - self.began) / self.fresh)} left"

    def _say(self, more: str) -> None:
        of = f" of {self.total}" if self.total is not None else ""
        unit = self.unit if self.count == self.total == 1 else f"{self.unit}s"
        print(f"{self.title}: {self.count}{of} {unit}" + (f", {more}" if more else ""), file=self._stream)
        self._stream.flush()


def through(items: Iterable[Any], progress: Progress, tokens=lambda item: 0) -> Iterator[Any]:
    """The items unchanged, each counted once the consumer has dealt with it."""
    for item in items:
        yield item
        progress.update(tokens=tokens(item))
