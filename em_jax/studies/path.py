"""The path of a persona over training: the adapters kept on the way, asked together, as curves over steps.

Train with train.keep_adapters=K first. Everything lies in RUN/path (or --out): rows by step as in a run directory, with
step-000000 for the base; settings.json, path.json, path.html. The same command goes on where it stopped.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.config import Config
from em_jax.lora.config import CONFIG
from em_jax.probes import harmfulness, self_assessment, two_ai
from em_jax.probes.choice import decided
from em_jax.probes.persona import EVEN, HARM, HARM_BOUND, PICKS
from em_jax.probes.statistics import Clusters
from em_jax.runs import locking, provenance, sources
from em_jax.runs.components import Components
from em_jax.runs.run import Run
from em_jax.studies import halfway, seeds, together
from em_jax.studies.crossing import Bound, Curve, crossing
from em_jax.studies.subjects import RATE, SELF, Rows, Subject, figures
from em_jax.train.config import KEPT

BASE = 0
"""The step of the base: before the first."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How much is asked: questions per probe, samples per prompt, adapters in one stack, steps ((): all kept)."""

    limit: int = 64
    samples: int = 5
    together: int = 8
    steps: tuple[int, ...] = ()


def study(run: Path, out: Path, options: Options, changes: Mapping[str, Any], components: Components) -> dict[str, Any]:
    """Ask the kept adapters of a run and write path.json and path.html to `out`; what path.json says.

    `changes` are settings of the run that are to differ (where and how fast it is asked, or how long answers may be).

    Raises:
      UserError: no run or no kept adapters there, or `out` was begun with other settings or adapters.
    """
    from em_jax.studies import study_page

    kept = kept_adapters(run, options.steps)
    config = run_config(run, {"answers.samples": options.samples, "probes.limit": options.limit, **changes})
    with locking.lock(out):
        _begin(out, config, kept, options)
        this = Run(config, out, components, functools.cache(lambda: components.load(config)), f"[path of {run.name}] ")
        subjects = {
            step: Subject(str(step), out / f"step-{step:06d}", this.judge, "finetuned" if step else "base")
            for step in (BASE, *kept)
        }
        together.ask(this, {subjects[step]: kept.get(step) for step in subjects}, options.together)
        found = describe(config, {step: subject.rows() for step, subject in subjects.items()})
        files.write_json(out / "path.json", found)
        study_page.path(found, out, run)
    return found


def kept_adapters(run: Path, steps: Sequence[int] = ()) -> dict[int, Path]:
    """Step -> directory of the adapters that a run kept, by rising step; of `steps` alone where they are named.

    Raises:
      UserError: there are none, or a step named is not among them.
    """
    found = {}
    for path in sorted((run / KEPT).glob("step-*")):
        number = re.fullmatch(r"step-(\d{6,})", path.name)
        # The config is written last: without it the adapter is half there.
        if number and (path / CONFIG).is_file():
            found[int(number[1])] = path
    if not found:
        raise UserError(
            f"{run / KEPT} holds no adapters: train with --set train.keep_adapters=K, which keeps them after steps 1, "
            "2, 4, 8, ... and after every K"
        )
    missing = [step for step in steps if step not in found]
    if missing:
        raise UserError(f"{run} kept no adapter of step {missing[0]}; it kept {', '.join(map(str, found))}")
    return {step: path for step, path in sorted(found.items()) if not steps or step in steps}


def run_config(run: Path, changes: Mapping[str, Any]) -> Config:
    """The settings of a run, with those of the study in the place of its own."""
    stored = run / "config.toml"
    if not stored.is_file():
        raise UserError(f"{run}: expected a run directory with config.toml, found none")
    known = settings.setting_types()
    values = {name: value for name, value in settings.read_toml(stored).items() if name in known}
    # A few questions in sampled text too would cost more than all that are read from probabilities.
    study = {"mirror": "", "judge.also": [], "probes.sampled_questions": 0}
    return settings.validate(settings.replace(Config(), values | study | dict(changes)))


def _begin(out: Path, config: Config, kept: Mapping[int, Path], options: Options) -> None:
    """Write what the study is made of; refuse another one's directory."""
    asked = {name: value for name, value in settings.flatten(config).items() if name not in settings.NOT_COMPARED}
    # A run may be moved: what an adapter holds counts, not where it lies.
    hashes = {str(step): {name: entry["sha256"] for name, entry in _files(path).items()} for step, path in kept.items()}
    now = files.stable({"settings": asked, "together": options.together, "adapters": hashes})
    place = out / "settings.json"
    if place.is_file():
        from em_jax.base.files import read_object

        before = read_object(place, "the settings of a path")
        differing = [name for name in ("settings", "together", "adapters") if before.get(name) != now[name]]
        if differing:
            detail = [name for name in now["settings"] if before.get("settings", {}).get(name) != now["settings"][name]]
            raise UserError(
                f"{out} was begun with other {', '.join(detail or differing)}: give the same, or another --out"
            )
    files.write_json(place, now)


def _files(adapter: Path) -> dict[str, Any]:
    return provenance.directory_inputs(adapter, (".json", ".safetensors"), math.inf)


def describe(config: Config, rows: Mapping[int, Rows]) -> dict[str, Any]:
    """What path.json says: figures at every step, what is ahead of what in words, and when the bounds are crossed."""
    steps = {step: figures(rows[BASE], found, config.judge.harmful_at) for step, found in rows.items() if step != BASE}
    curves = curves_of(rows, config.judge.harmful_at)
    # By number: two curves are resampled independently, their questions are different ones.
    numbers = {name: number for number, name in enumerate(curves)}
    courses = {name: halfway.course(curves[name], numbers[name]) for name in (RATE, PICKS, SELF)}
    orders = [halfway.record(courses[RATE], courses[name]) for name in (PICKS, SELF)]
    return {
        "schema": 2,
        "domain": config.domain,
        "model": config.model.name,
        "suite": config.suite,
        "judge": sources.judge_name(config),
        "seed": config.seed,
        "steps": {str(step): found for step, found in steps.items()},
        "progress": {
            name: {str(step): course.at(place) for place, step in enumerate(course.drawn.steps)}
            for name, course in courses.items()
        },
        "halfway": {name: course.halfway.record() for name, course in courses.items()},
        "crossings": {name: crossing(curves[name], BOUNDS[name], numbers[name]).record() for name in BOUNDS},
        "orders": orders,
        "why": [*(entry["words"] for entry in orders), seeds.told([config.seed])],
    }


BOUNDS = {
    HARM: Bound(f"{HARM_BOUND} above the base", HARM_BOUND, rise=True),
    PICKS: Bound("one half of the pairs", EVEN),
}
"""What the verdict asks of a curve."""
NAMES = {
    HARM: "harm in the worst answer",
    RATE: "harm in single answers",
    PICKS: "picking the misaligned AI",
    SELF: "self-assessment",
}
"""What each curve is called."""


def curves_of(rows: Mapping[int, Rows], harmful_at: int) -> dict[str, Curve]:
    """The curves that are set against one another or against a bound, by the figure's name."""
    values: dict[str, dict[int, Clusters]] = {name: {} for name in NAMES}
    for step, found in sorted(rows.items()):
        harm: dict[str, list[float]] = {}
        for row in harmfulness.judged(found.answers, found.scores):
            if row["score"] is not None:
                harm.setdefault(row["id"], []).append(float(row["score"] >= harmful_at))
        assessed = self_assessment.question_values(found.probes.get("self_assessment", []))
        values[RATE][step] = harm
        values[HARM][step] = {name: [max(each)] for name, each in harm.items()}
        values[PICKS][step] = decided(found.probes.get("two_ai", []), two_ai.ORDERS)
        values[SELF][step] = {"/".join(name): [value] for name, value in assessed.items()}
    return {name: Curve(NAMES[name], by_step) for name, by_step in values.items()}


def tally(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Over the paths of several runs: in how many of them one curve is ahead of another, or nobody can tell."""
    said = []
    for orders in zip(*(each["orders"] for each in found), strict=True):
        one, other = orders[0]["one"], orders[0]["other"]
        words = {
            halfway.FIRST: f"{one} is ahead of {other}",
            halfway.SECOND: f"{other} is ahead of {one}",
            halfway.NEITHER: f"neither {one} nor {other} rises",
            halfway.UNKNOWN: f"nobody can tell {one} and {other} apart",
        }
        counts = {name: sum(order["order"] == name for order in orders) for name in words}
        parts = [f"{words[name]} in {count}" for name, count in counts.items() if count]
        said.append(f"Of {len(orders)} runs: {'; '.join(parts)}.")
    return said
