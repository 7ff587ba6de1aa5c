"""`em-jax organism pretrain`: make the embedded calibration model again."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError


def main(arguments: Sequence[str]) -> None:
    """Pretrain tokenizer and model into a Hugging Face checkpoint."""
    parser = Parser(prog="em-jax organism", description="Make the embedded calibration model again.")
    parser.add_argument("what", choices=("pretrain",), help="the tokenizer and the checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the files are written")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights and of the corpus (0)")
    parser.add_argument("--recipe", default="{}", metavar="JSON", help="changes to the recipe, as a JSON object")
    flags = parser.parse_args(arguments)
    from em_jax.organism.pretrain import Recipe, pretrain, use_one_core

    known = {field.name for field in dataclasses.fields(Recipe)}
    try:
        changes = json.loads(flags.recipe)
    except ValueError as error:
        raise UsageError(f"--recipe expects a JSON object, found {flags.recipe[:60]!r}: {error}") from None
    if not isinstance(changes, dict) or not set(changes) <= known:
        raise UsageError(f"--recipe expects a JSON object with keys of {', '.join(sorted(known))}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_one_core()
    pretrain(flags.seed, Path(flags.out), dataclasses.replace(Recipe(), **changes))
