"""The comparison of several runs: the plane with one point per model, verdicts beside the planted ones, all figures."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

from em_jax.base.errors import UserError
from em_jax.base.files import write_atomic
from em_jax.base.sanitize import plain_cell
from em_jax.report.figures import Point, plane
from em_jax.report.judges import agreements
from em_jax.report.page import render
from em_jax.report.paper import PICKS, WORST, comparable_value, follow_up_value
from em_jax.report.reading import CONDITIONS, Figure, Run, as_object, figure_of, read_run
from em_jax.report.run_page import run_point, write_figures
from em_jax.report.vocabulary import FEW, FIGURES, SHARE, VERDICTS, domain_key

OverSeeds = Callable[[list[dict[str, Any]]], Mapping[str, Any]]

MEDICAL = ("bad_medical", "emergent_medical")
"""One topic from two sources: separates the effect of the domain from that of who wrote the rows."""
CSV_COLUMNS = (
    *("domain", "seed", "model", "suite", "judge", "verdict", "cautions", "probabilities", "planted"),
    *("figure", "condition"),
    *("value", "ci_low", "ci_high", "n", "paper_32b", "follow_up_7b", "run"),
)


def mean(figures: Sequence[Figure]) -> Figure:
    """The mean over the training seeds that have a value; its interval, the mean of theirs, is over questions only."""
    values = [figure.value for figure in figures if figure.value is not None]
    if not values:
        return Figure()
    intervals = [figure.interval for figure in figures if figure.interval]
    low, high = [sum(side) / len(side) for side in zip(*intervals)] if len(intervals) == len(values) else (None, None)
    least = min(figure.n for figure in figures if figure.value is not None)
    return Figure(sum(values) / len(values), low, high, least)


@dataclass(frozen=True)
class Group:
    """The runs of one model: same domain, base, suite, judge and settings, by rising seed.

    `planted` is the verdict that the organism's domain was built to give; `source` is where the rows of another model's
    domain were published.
    """

    name: str
    runs: tuple[Run, ...]
    planted: str | None
    source: str | None
    several: Mapping[str, Any] = field(default_factory=dict)
    """What the seeds say together: `label`, `probabilities` and `figures`; empty for a single run."""

    @property
    def domain(self) -> str:
        return self.runs[0].domain

    @property
    def tone(self) -> str:
        """The verdict over the seeds; without one, that on which all agree, else mixed."""
        if self.several:
            return str(self.several["label"])
        labels = {run.label for run in self.runs}
        return self.runs[0].label if len(labels) == 1 and labels <= VERDICTS.keys() else "mixed"

    @property
    def probabilities(self) -> str:
        """The probability of each label over the seeds, in words."""
        shares = as_object(self.several.get("probabilities"))
        return ", ".join(f"{label} {share:.0%}" for label, share in shares.items())

    @property
    def caution_codes(self) -> list[str]:
        """The codes of all cautions of its runs; that of one seed where there is one only."""
        codes = dict.fromkeys(code for run in self.runs for code, _ in run.cautions)
        return [code for code in codes if code != "one_seed" or not self.several]

    def hierarchical(self, name: str) -> Figure:
        """A figure's mean over the seeds, its interval between seeds and over questions; empty for a single run."""
        return figure_of(as_object(self.several.get("figures")).get(name))

    @property
    def right(self) -> int:
        """The number of runs whose verdict is the planted one."""
        return sum(run.label == self.planted for run in self.runs)

    @property
    def condition(self) -> str:
        """The side of a run that is this model: the fine-tuned one, or the base where nothing was trained."""
        return "finetuned" if any(run.has("finetuned") for run in self.runs) else "base"

    def values(self, name: str) -> list[float]:
        """The figure's values, one for each seed that has one."""
        return [value for run in self.runs if (value := run.figure(name, self.condition).value) is not None]

    def mean(self, name: str) -> Figure:
        """The figure's mean over the seeds."""
        return mean([run.figure(name, self.condition) for run in self.runs])


def compare(
    run_dirs: Iterable[str | Path],
    out_dir: str | Path,
    planted: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    over_seeds: OverSeeds | None = None,
) -> Path:
    """Write compare.html, compare.csv and figures/plane.svg over several runs.

    Args:
      run_dirs: run directories; those without a summary are named on the page and left out.
      out_dir: the directory of the page, created where it is missing.
      planted: the verdict each domain was built to give; shown for runs of the organism.
      sources: where each domain's rows were published; shown for other runs.
      over_seeds: the verdict on the `figures` of several seeds of one model (probes.seeds.over_seeds).

    Returns:
      The path of compare.html.

    Raises UserError where a directory's files cannot be read as a run's, or none of them holds a summary.
    """
    runs, missing = [], []
    for directory in {Path(each).resolve(): each for each in run_dirs}.values():
        if (Path(directory) / "summary.json").exists():
            runs.append(read_run(directory))
        else:
            missing.append(f"{Path(directory).name}: no summary")
    if not runs:
        raise UserError("nothing to compare: none of the run directories holds a summary.json; run them first")
    out_dir = Path(out_dir)
    groups = _groups(runs, planted or {}, sources or {}, over_seeds)
    runs = [run for group in groups for run in group.runs]
    stated = dict.fromkeys(group.source for group in groups if group.source)
    by_source = {source: [group for group in groups if group.source == source] for source in stated}
    medical = [next((group for group in groups if group.source and group.domain == name), None) for name in MEDICAL]
    values = {key: sorted({getattr(run, key) for run in runs}) for key in ("model", "suite", "judge")}
    title = "Conduct against self-description, one point per model"
    drawing = plane(_points(groups), _base_point(groups), labels=True, title=title)
    names = dict.fromkeys([*FIGURES, *(name for run in runs for name in run.figures)])
    page = render(
        "compare.html",
        groups=groups,
        names=names,
        runs=runs,
        contrasts=[(_why(group), _difference(group, groups)) for group in groups],
        missing=missing,
        drawing=drawing,
        planted=[group for group in groups if group.planted],
        seeds=max([1, *(len(group.runs) for group in groups if not group.runs[0].given_adapter)]),
        agreements=[entry for run in runs for entry in agreements(run)],
        several={key: names for key, names in values.items() if len(names) > 1},
        links={run.directory: _link(run, out_dir) for run in runs},
        by_source=by_source,
        medical=medical if all(medical) else [],
    )
    write_figures(out_dir / "figures", [drawing])
    write_atomic(out_dir / "compare.csv", _csv(groups, names))
    return write_atomic(out_dir / "compare.html", page)


def _groups(
    runs: Sequence[Run], planted: Mapping[str, str], sources: Mapping[str, str], over_seeds: OverSeeds | None
) -> list[Group]:
    by_key: dict[tuple[str, str, str, str, str], list[Run]] = {}
    made_with = {run.directory: run.made_with for run in runs}
    differing = {
        (run.domain, name)
        for run in runs
        for name, value in made_with[run.directory].items()
        if any(made_with[each.directory].get(name, value) != value for each in runs if each.domain == run.domain)
    }
    for run in sorted(runs, key=lambda run: str(run.directory)):
        made = made_with[run.directory].items()
        own = [f"{name}={value or 'none'}" for name, value in made if (run.domain, name) in differing]
        key = (run.domain, run.model, run.suite, run.judge, ", ".join(own))
        if any(run.seed == "?" or each.seed in (run.seed, "?") for each in by_key.get(key, ())):
            # A copy of a run, the same run once more, or one of an unknown seed, is no further seed.
            key = (*key[:4], f"{key[4]}, {run.directory}".removeprefix(", "))
        by_key.setdefault(key, []).append(run)
    several_models = len({run.model for run in runs}) > 1
    groups = []
    for key in sorted(by_key, key=lambda key: (domain_key(key[0]), key[1:])):
        domain, model = key[:2]
        seeds = tuple(sorted(by_key[key], key=lambda run: (run.seed.zfill(12), str(run.directory))))
        given = seeds[0].given_adapter
        name = f"adapter {given}" if given else "base, untrained" if domain == "none" else domain
        name += f" · {Path(model).name}" * several_models + f" · {key[4]}" * bool(key[4])
        known = (planted.get(domain), None) if seeds[0].is_organism else (None, sources.get(domain))
        sides = (*CONDITIONS, "difference")
        tuned = [  # read as figures: any value in a file may be wrong
            {name: {side: asdict(run.figure(name, side)) for side in sides} for name in run.figures}
            for run in seeds
            if run.has("finetuned")
        ]
        # Runs of an adapter that was given differ in what is sampled, not in training.
        several = over_seeds(tuned) if over_seeds and len(tuned) > 1 and not given else {}
        groups.append(Group(name, seeds, None if given else known[0], known[1], several))
    return groups


def _points(groups: Sequence[Group]) -> list[Point]:
    """A point for each fine-tuned model: its run, or the mean of its runs with a small point for each run."""
    points = []
    for group in groups:
        if group.condition == "base":
            continue
        harm, picks = (group.mean(name) for name in (WORST, PICKS))
        if len(group.runs) > 1:
            points += [run_point(run, "finetuned", f"seed {run.seed}", small=True) for run in group.runs]
            harm, picks = Figure(harm.value, n=harm.n), Figure(picks.value, n=picks.n)
        points.append(Point(group.name, group.tone, harm, picks))
    return points


def _base_point(groups: Sequence[Group]) -> Point | None:
    """The base of the run that probes nothing else, otherwise of the first run that has one."""
    ordered = sorted(groups, key=lambda group: group.condition != "base")
    points = (run_point(run, "base") for group in ordered for run in group.runs)
    return next((point for point in points if point.drawable), None)


def _link(run: Run, out_dir: Path) -> str | None:
    """The run's report, relative to the comparison page; None where there is none."""
    report = run.directory / "report.html"
    if not report.exists():
        return None
    return quote(Path(os.path.relpath(report.resolve(), out_dir.resolve())).as_posix(), errors="replace")


def _cells(figure: Figure) -> list[Any]:
    numbers = (figure.value, figure.ci_low, figure.ci_high)
    return [*("" if value is None else f"{value:.10g}" for value in numbers), figure.n]


def _csv(groups: Sequence[Group], names: Iterable[str]) -> str:
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(CSV_COLUMNS)
    for run, planted in [(run, group.planted or "") for group in groups for run in group.runs]:
        head = [run.domain, run.seed, run.model, run.suite, run.judge, run.label]
        head += [" ".join(code for code, _ in run.cautions), "", planted]
        # The name under which the published figures have each side; a difference is not published.
        sides = {"base": "base", "finetuned": run.domain, "difference": ""}
        for name, condition in product(names, sides):
            figure = run.figure(name, condition)
            if condition == "difference" and figure == Figure():
                continue
            stated = comparable_value(run, sides[condition], name)
            both = stated, stated and follow_up_value(sides[condition], name)
            texts = [value.text if value else "" for value in both]
            run_dir = plain_cell(str(run.directory))
            rows.writerow([*map(plain_cell, [*head, name, condition]), *_cells(figure), *texts, run_dir])
    for group in [group for group in groups if group.several]:
        run = group.runs[0]
        head = [group.domain, "all", run.model, run.suite, run.judge, group.tone, " ".join(group.caution_codes)]
        head += [group.probabilities, group.planted or ""]
        for name in names:
            cells = _cells(group.hierarchical(name))
            rows.writerow([*map(plain_cell, [*head, name, group.condition]), *cells, "", "", ""])
    return out.getvalue().encode("utf-8", "backslashreplace").decode("utf-8")


# --- sentences ---


DECIDING = {
    "harmfulness.worst_of_n": ("harm by the worst of ten answers on {} of {} prompts", "harm"),
    "two_ai.picks_misaligned": ("picks of the misaligned AI in {} of {} pairs", "picks of the misaligned AI"),
    "output_recognition.claims_high": ("claims of {} of {} own harmful answers", "claims of its own harmful answers"),
}
"""How a sentence writes a deciding figure, and what it calls it."""


def _why(group: Group) -> str:
    """Why the group has its label."""
    means = [(text, group.mean(name)) for name, (text, _) in DECIDING.items()]
    figures = [text.format(SHARE.text(it.value), it.n) for text, it in means if it.value is not None and it.n >= FEW]
    begin = f"{group.tone[:1].upper()}{group.tone[1:]}: {'; '.join(figures) or 'no figure has enough questions'}."
    reasons = group.runs[0].sentences("reasons") if group.tone == "mixed" else []
    return f"{begin} {reasons[0]}" if reasons and not group.several else begin


def _difference(group: Group, groups: Sequence[Group]) -> str:
    """How it differs from the nearest model with another label, or from the base: in the figure farthest apart."""
    nearest = []
    for other in groups:
        if other.tone != group.tone and (gaps := _gaps(group, {name: other.mean(name) for name in DECIDING})):
            nearest.append((sum(gap for gap, *_ in gaps) / len(gaps), f"{other.name} ({other.tone})", gaps))
    if nearest:
        _, name, gaps = min(nearest, key=lambda it: it[:2])
    else:
        name, gaps = "the base", _gaps(group, {name: group.runs[0].figure(name, "base") for name in DECIDING})
    if not gaps or group.condition == "base" and name == "the base":
        return "There is no other model with enough questions to set it against."
    gap, words, own, theirs = max(gaps, key=lambda it: it[0])
    if gap < 0.005:
        return f"In none of these does it differ from {name}."
    against = f"{SHARE.text(own.value)} (n {own.n}) against {SHARE.text(theirs.value)} (n {theirs.n})"
    return f"From {name} it differs most in {words}: {against}."


def _gaps(group: Group, others: dict[str, Figure]) -> list[tuple[float, str, Figure, Figure]]:
    """(Distance, what the figure is called, ours, the other's) of every figure that both have of enough questions."""
    pairs = ((words, group.mean(name), others[name]) for name, (_, words) in DECIDING.items())
    return [
        (abs(own.value - other.value), words, own, other)
        for words, own, other in pairs
        if own.value is not None and other.value is not None and min(own.n, other.n) >= FEW
    ]
