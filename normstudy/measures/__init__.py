"""Measurements of finished runs: which runs and checkpoints, on which images, and what each measurement computes."""

from normstudy.measures.class_similarity import CLASS_SIMILARITY
from normstudy.measures.hessian import hessian_measurement
from normstudy.measures.measure_runs import measure_runs

__all__ = ["CLASS_SIMILARITY", "hessian_measurement", "measure_runs"]
