"""report.html and its figures: what a run directory shows to a reader, the pages that compare several."""

from em_jax.report.compare_page import compare
from em_jax.report.run_page import write
from em_jax.report.study_page import path, study

__all__ = ["compare", "path", "study", "write"]
