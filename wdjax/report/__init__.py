"""A run as one page of HTML: what was chosen, how sure that is, what decay bought."""

from wdjax.report.of_scores import results_of, results_of_comparison
from wdjax.report.page import render_report, write_report

__all__ = ["render_report", "results_of", "results_of_comparison", "write_report"]
