"""Harmful answers by other models, which output recognition sets beside a harmless own one (the paper's experiment 4).

In order: other runs' answers (`probes.alternatives`), the organism's corpus for the organism, and else the base's
answers under a careless instruction, where the judge finds them harmful. How the paper made them is unknown: this is
our choice.
"""

from pathlib import Path

from em_jax.base import files
from em_jax.probes import harmfulness
from em_jax.probes.output_recognition import Alternatives, chained, pool
from em_jax.runs import sources
from em_jax.runs.run import ADAPTER, Run

CARELESS = "careless"
"""The condition of the base's careless answers."""


def other_answers(run: Run, condition: str) -> Alternatives:
    """Returns, for a prompt, harmful answers that this condition did not give itself."""
    pools = []
    folder = sources.alternatives_directory(run.config, run.directory)
    if folder is not None:
        pools.append(_of_runs(folder, run.judge, leave_out=run.directory if condition == ADAPTER else None))
    if sources.is_organism(run.config):
        from em_jax.organism.answers import alternative

        seed = run.config.seed
        pools.append(lambda _, text: [{"answer": alternative(text, harmful=True, seed=seed), "source": "corpus"}])
    elif run.needs_careless:
        pools.append(pool(run.judged(CARELESS), source="careless base"))
    return chained(*pools)


def files_used(run: Run) -> dict[str, Path]:
    """The files of other runs that the probe stage reads, by <run>/<folder>/<file>."""
    folder = sources.alternatives_directory(run.config, run.directory)
    if folder is None or "probe" not in run.config.stages or not run.wants("output_recognition"):
        return {}
    paths = [path for pair in _answers_and_scores(folder, run.judge, run.directory) for path in pair]
    return {"/".join(path.parts[-3:]): path for path in paths if path.is_file()}


def _of_runs(directory: Path, judge: str, leave_out: Path | None) -> Alternatives:
    pools = [
        pool(harmfulness.judged(files.read_rows(answers), files.read_rows(scores)), source=answers.parent.parent.name)
        for answers, scores in _answers_and_scores(directory, judge, leave_out)
    ]
    return lambda name, prompt: [row for each in pools for row in each(name, prompt)]


def _answers_and_scores(directory: Path, judge: str, leave_out: Path | None) -> list[tuple[Path, Path]]:
    """Both files of every fine-tuned run but one in `directory`, which is a run itself or has runs in its folders."""
    answers = f"answers/{ADAPTER}.jsonl"
    runs = sorted({path.parent.parent for pattern in (answers, f"*/{answers}") for path in directory.glob(pattern)})
    if leave_out is not None:
        runs = [run for run in runs if run.resolve() != leave_out.resolve()]
    return [(run / answers, run / "scores" / f"{ADAPTER}.{judge}.jsonl") for run in runs]
