"""Tells at the end of a run how many hostile cases were tried."""

from hostile import trying


def pytest_terminal_summary(terminalreporter):
    if trying.TRIED:
        terminalreporter.write_line(
            f"hostile input: {trying.TRIED.total():,} cases tried, each a success or one clear line; the slowest took "
            f"{trying.WORST['seconds']:.1f} s, the largest {trying.WORST['megabytes']:.0f} MB more"
        )
