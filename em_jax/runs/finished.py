"""A finished run as a notebook reads it: its verdict and figures, and its rows as tables."""

import html
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.runs import stored

CONDITIONS = ("base", "finetuned")


class FinishedRun:
    """The files of a run directory. It reads them when they are asked for, and loads no model.

    Raises UsageError where `path` is no run directory.
    """

    def __init__(self, path: str | Path):
        self.directory = Path(path)
        self._run = stored.open_run(self.directory, with_base=False)
        self.config = self._run.config

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json. UserError where the run has not got so far."""
        path = self.directory / "summary.json"
        if not path.exists():
            raise UserError(f"no {path}: expected a finished run, start its command again to finish it")
        return files.read_object(path, "the summary of a run")

    @property
    def figures(self) -> dict[str, Any]:
        """{name: {"base", "finetuned", "difference": {"value", "ci_low", "ci_high", "n"}}}."""
        return self.summary["figures"]

    @property
    def verdict(self) -> dict[str, Any]:
        """{"label", "why": sentences, "cautions": [{"code", "sentence"}], "nearest"}."""
        return self.summary["verdict"]

    def answers(self) -> Any:
        """A pandas DataFrame of all answers, with `condition` and the `score` of the figures' judge (NaN without)."""
        return _table({**row, "condition": each} for each in CONDITIONS for row in self._run.judged(each))

    def probes(self) -> Any:
        """A pandas DataFrame of all questions of the probes, with `condition` and `probe`."""
        names = sorted(path.name.split(".")[:2] for path in (self.directory / "probes").glob("*.*.jsonl"))
        return _table(
            {**row, "condition": condition, "probe": probe}
            for condition, probe in names
            for row in self._run.probe_rows(condition, probe)
        )

    def report(self) -> Path:
        """The path of the report, drawn again from the run's files."""
        from em_jax import report

        return Path(report.write(self.directory))

    def __repr__(self) -> str:
        path = self.directory / "summary.json"
        return f"Run({str(self.directory)!r}, {self.verdict['label'] if path.exists() else 'not finished'})"

    def _repr_html_(self) -> str:
        if not (self.directory / "summary.json").exists():
            return f"<p>{html.escape(repr(self))}</p>"
        sentences = [*self.verdict["why"], *(caution["sentence"] for caution in self.verdict["cautions"])]
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
        name = html.escape(str(self.directory))
        return f"<p><b>{html.escape(self.verdict['label'])}</b> {name}</p><ul>{items}</ul>"


def _table(rows: Any) -> Any:
    """Rows as a DataFrame, without the seals of their lines."""
    try:
        import pandas
    except ImportError:
        raise UserError("tables need pandas, which is not installed: pip install 'em_jax[notebook]'") from None
    return pandas.DataFrame([{name: value for name, value in row.items() if name != "seal"} for row in rows])
