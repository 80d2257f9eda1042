"""Measurements of finished runs: the choice of runs, checkpoints and images, and the measurements themselves."""

from normstudy.measures.class_similarity import CLASS_SIMILARITY
from normstudy.measures.generalization import generalization_measures
from normstudy.measures.hessian import hessian_measurement
from normstudy.measures.landscape_file import LANDSCAPE, name_other_run
from normstudy.measures.measure_runs import measure_runs
from normstudy.measures.measures_file import MEASURES

__all__ = [
    "CLASS_SIMILARITY",
    "LANDSCAPE",
    "MEASURES",
    "generalization_measures",
    "hessian_measurement",
    "measure_runs",
    "name_other_run",
]
