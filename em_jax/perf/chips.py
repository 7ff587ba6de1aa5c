"""The chips that are planned for; they live with the runs, which place their arrays by them."""

from em_jax.runs.chips import CHIPS, GIB, Chip, parse_topology

__all__ = ["CHIPS", "GIB", "Chip", "parse_topology"]
