"""The library of the normalization study, with one folder for each subject."""
