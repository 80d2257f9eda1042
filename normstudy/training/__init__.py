"""Training: the step and the loop, optimizers, the probe recorder, several processes."""

from normstudy.training.train_run import train_run

__all__ = ["train_run"]
