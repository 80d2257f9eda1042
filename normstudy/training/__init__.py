"""Training: the step, the loop, the optimizer, the probe recorder and runs on several processes."""

from normstudy.training.train_run import train_run

__all__ = ["train_run"]
