"""The report: tables of runs, statistics, claims, figures over many runs, and the page."""

from normstudy.report.build import write_report
from normstudy.report.data import ReportOptions

__all__ = ["ReportOptions", "write_report"]
