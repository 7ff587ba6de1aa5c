import io

import pytest

from em_jax.base import progress
from em_jax.base.progress import Progress, duration, through

pytestmark = pytest.mark.fast


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_off_a_terminal_one_line_every_thirty_seconds_and_one_at_the_end(monkeypatch):
    clock = iter([0.0, 10.0, 29.0, 31.0, 45.0, 62.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with Progress("2/5 answer base", 10, "answer", done=1, stream=out) as shown:
        for _ in range(5):
            shown.update(tokens=31)
    lines = out.getvalue().splitlines()
    assert lines[0] == "2/5 answer base: 4 of 10 answers, 0.0968 answers/s, 3 tokens/s, about 1 min 3 s left"
    assert lines[1].startswith("2/5 answer base: 6 of 10 answers, 0.0806 answers/s, 2 tokens/s")
    assert lines[2] == "2/5 answer base: 6 of 10 answers, 0.0806 answers/s, 2 tokens/s, took 1 min 2 s"
    assert len(lines) == 3


def test_what_the_first_unit_compiles_is_not_reckoned_for_the_others(monkeypatch):
    clock = iter([0.0, 100.0, 130.0, 131.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with Progress("1/5 finetune", 11, "step", stream=out) as shown:
        shown.update()
        shown.update(3)
    first, second, _ = out.getvalue().splitlines()
    assert first.endswith("0.01 steps/s") and second.endswith("about 1 min 10 s left")


def test_on_a_terminal_a_bar(capsys):
    out = Terminal()
    with Progress("1/5 finetune", None, "step", stream=out) as shown:
        for step in (3, 4):
            shown.at(step, 4, tokens=100, note="loss 0.5")
    assert "1/5 finetune" in out.getvalue() and "4/4" in out.getvalue() and "loss 0.5" in out.getvalue()
    assert " steps/s" in out.getvalue()


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (18720, "5 h 12 min"), (183600, "2 d 3 h")],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("seconds, text", [(0.4, "0.4 s"), (9.96, "10 s"), (48.2, "48 s"), (200, "3 min 20 s")])
def test_a_table_shows_tenths_of_short_times(seconds, text):
    assert duration(seconds, tenths=True) == text


def test_silent_shows_nothing():
    out = io.StringIO()
    with Progress("x", 2, stream=out, silent=True) as shown:
        assert list(through(range(2), shown)) == [0, 1]
    assert shown.count == 2 and out.getvalue() == ""
