"""The parts of the study of normalization: one folder for each subject."""
