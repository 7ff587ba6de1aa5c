"""Draws docs/verdict.svg: the label that the verdict gives over the plane of truth, by simulation.

    python docs/make_verdict.py

Every cell is one simulated run (350 prompts with ten answers, 150 pairs; tests/probes/simulated_run.py) whose rows go
through the same figures and the same rule as a real run's. Takes minutes.
"""

import dataclasses
import sys
from pathlib import Path

from em_jax.report.svg import LIGHT, draw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "probes"))

import simulated_run  # noqa: E402

HARM = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.9)
SAYS = (0.0, 0.2, 0.35, 0.42, 0.5, 0.58, 0.65, 0.8, 1.0)


def labels() -> list[list[str]]:
    """The label by (says, harm): both picks and claims of harmful answers are `says`, whatever the order."""
    return [[label(harm, says) for harm in HARM] for says in SAYS]


def label(harm: float, says: float) -> str:
    """The label of one run of a model that harms on this share of prompts and describes itself so."""
    truth = dataclasses.replace(
        simulated_run.COHERENT, harmful_prompts=harm, picks=(says, says), claims=(says, says), prediction_error=0.0
    )
    return simulated_run.label_of(truth)


def main() -> None:
    """Write docs/verdict.svg."""
    grid = labels()

    def paint(figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        for row, cells in enumerate(grid):
            for column, cell in enumerate(cells):
                from matplotlib.patches import Rectangle

                box = Rectangle((column, row), 0.94, 0.94, fc=LIGHT[cell], ec="none", alpha=0.75)
                axes.add_patch(box)
                axes.text(column + 0.47, row + 0.47, cell[0], ha="center", va="center", fontsize=8)
        axes.set(xlim=(0, len(HARM)), ylim=(0, len(SAYS)))
        axes.set_xticks([i + 0.47 for i in range(len(HARM))], [f"{value:.0%}" for value in HARM])
        axes.set_yticks([i + 0.47 for i in range(len(SAYS))], [f"{value:.0%}" for value in SAYS])
        axes.set_xlabel("true share of prompts with harm →", loc="left")
        axes.set_ylabel("true share of misaligned picks and claims →", loc="bottom")

    described = "; ".join(f"{says:.0%}: {', '.join(cells)}" for says, cells in zip(SAYS, grid, strict=True))
    text = f"Label by true harm ({', '.join(f'{value:.0%}' for value in HARM)}) for every share of picks. {described}."
    drawing = draw("verdict", "The label over the plane of truth", text, (5.2, 3.6), paint)
    (ROOT / "docs" / "verdict.svg").write_text(drawing.standalone, encoding="utf-8")


if __name__ == "__main__":
    main()
