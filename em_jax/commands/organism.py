"""`em-jax organism pretrain`: make the embedded calibration model again."""

import logging
from collections.abc import Sequence
from pathlib import Path

from em_jax.base.cli import Parser, count_flag


def main(arguments: Sequence[str]) -> None:
    """Pretrain tokenizer and model into a Hugging Face checkpoint."""
    parser = Parser(prog="em-jax organism", description="Make the embedded calibration model again.")
    parser.add_argument("what", choices=("pretrain",), help="the tokenizer and the checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the files are written")
    parser.add_argument("--seed", **count_flag(0, 0, "of the weights and of the corpus", 2**32 - 1))
    flags = parser.parse_args(arguments)
    from em_jax.organism.pretrain import Recipe, pretrain, use_one_core

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_one_core()
    pretrain(flags.seed, Path(flags.out), Recipe())
