"""The report: tables of runs, statistics, claims, figures over many runs, and the page."""

from normstudy.report.build import Report

__all__ = [
    "Report",
]
