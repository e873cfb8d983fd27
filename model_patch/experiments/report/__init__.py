"""Tables and plots of results."""

from model_patch.experiments.report.comparison import write_report
from model_patch.experiments.report.table import markdown, print_table

__all__ = ["markdown", "print_table", "write_report"]
