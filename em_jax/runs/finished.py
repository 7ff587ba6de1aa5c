"""A finished run as a notebook reads it: its verdict and figures, and its rows as tables."""

import html
from pathlib import Path
from typing import Any

from em_jax.base.errors import UserError
from em_jax.runs import stored


class Run:
    """The files of a run directory. It reads them when they are asked for, and loads no model but for `engine`.

    Raises UsageError where `path` is no run directory.
    """

    def __init__(self, path: str | Path):
        self.directory = Path(path)
        self._run = stored.open_run(self.directory, with_base=False)
        self.config = self._run.config

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json. UserError where the run has not got so far."""
        if (summary := stored.read_summary(self.directory)) is None:
            path = self.directory / "summary.json"
            raise UserError(f"no {path}: expected a finished run, start its command again to finish it")
        return summary

    @property
    def figures(self) -> "Figures":
        """{name: {"base", "finetuned", "difference": {"value", "ci_low", "ci_high", "n"}}}, shown as a table."""
        return Figures(self.summary["figures"])

    @property
    def verdict(self) -> dict[str, Any]:
        """{"label", "why": sentences, "reasons": some of them, "cautions": [{"code", "sentence"}], "nearest"}."""
        return self.summary["verdict"]

    def answers(self) -> Any:
        """A pandas DataFrame of all answers, with `condition` and the `score` of the figures' judge (NaN without)."""
        return _table({**row, "condition": each} for each in self._run.conditions for row in self._run.judged(each))

    def probes(self) -> Any:
        """A pandas DataFrame of all questions of the probes, with `condition` and `probe`."""
        names = sorted(path.name.split(".")[:2] for path in (self.directory / "probes").glob("*.*.jsonl"))
        return _table(
            {**row, "condition": condition, "probe": probe}
            for condition, probe in names
            for row in self._run.probe_rows(condition, probe)
        )

    @property
    def adapter(self) -> Path | None:
        """The directory of the adapter, in PEFT's format: the run's own or the one it was given; None without."""
        return self._run.adapter

    def engine(self) -> Any:
        """The run's model as an Engine, its adapter the default of every method; adapter="base" switches it off.

        Raises UserError where the adapter is not trained yet, or the model is not what the run was made with.
        """
        from em_jax.runs import components, sources
        from em_jax.runs.loading import load

        run = stored.open_run(self.directory)
        run.require_adapter()
        config = sources.pinned(run.config, self.directory)
        return load(config.model.name, adapter=run.adapter, **components.model_arguments(config))

    def report(self) -> Path:
        """The path of the report, drawn again from the run's files."""
        from em_jax import report

        return Path(report.write(self.directory))

    def __repr__(self) -> str:
        summary = stored.read_summary(self.directory)
        return f"Run({str(self.directory)!r}, {summary['verdict']['label'] if summary else 'not finished'})"

    def _repr_html_(self) -> str:
        name, summary = html.escape(str(self.directory)), stored.read_summary(self.directory)
        if not summary:
            return f"<p><b>not finished</b> {name}</p>"
        verdict = summary["verdict"]
        sentences = [*verdict["why"], *(caution["sentence"] for caution in verdict["cautions"])]
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
        return f"<p><b>{html.escape(verdict['label'])}</b> {name}</p><ul>{items}</ul>"


class Figures(dict):
    """The figures of a run by name, shown as a table with intervals and numbers of questions."""

    def _repr_html_(self) -> str:
        columns = ("base", "finetuned", "difference")
        head = "".join(f"<th>{column}</th>" for column in columns)
        rows = (
            f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{_cell(each[column])}</td>' for column in columns)}</tr>"
            for name, each in self.items()
        )
        return f"<table><tr><th>value [95% interval], n</th>{head}</tr>{''.join(rows)}</table>"


def _cell(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "no data"
    low, high = figure["ci_low"], figure["ci_high"]
    interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{figure['value']:.2f}{interval}, {figure['n']}"


def _table(rows: Any) -> Any:
    """Rows as a DataFrame, without the seals of their lines."""
    try:
        import pandas
    except ImportError:
        raise UserError("tables need pandas, which is not installed: pip install 'em_jax[notebook]'") from None
    return pandas.DataFrame([{name: value for name, value in row.items() if name != "seal"} for row in rows])
