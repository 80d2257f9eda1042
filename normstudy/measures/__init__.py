"""Measurements of finished runs: the choice of runs, checkpoints and images, and the measurements themselves."""

from normstudy.measures.class_similarity import CLASS_SIMILARITY
from normstudy.measures.hessian import hessian_measurement
from normstudy.measures.measure_runs import measure_runs

__all__ = ["CLASS_SIMILARITY", "hessian_measurement", "measure_runs"]
