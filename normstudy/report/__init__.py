"""The report: tables of runs, statistics, claims, figures over many runs, and the page."""

from normstudy.report.build import write_report
from normstudy.report.data import ReportOptions
from normstudy.report.watch import watch_report

__all__ = ["ReportOptions", "watch_report", "write_report"]
