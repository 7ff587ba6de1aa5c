"""report.html and its figures: what a run directory shows to a reader, the pages that compare several."""

from em_jax.report.compare_page import compare
from em_jax.report.run_page import write

__all__ = ["compare", "write"]
