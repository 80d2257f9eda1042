"""Measure how similar the features of different classes are, at the checkpoints of finished runs.

    python run_class_similarity.py                     every run in results/ that is not measured yet
    python run_class_similarity.py results/RUN --checkpoint=all

class_similarity.json and class_similarity.png are written to each run directory.
"""

from collections.abc import Sequence

from normstudy.cli import Parser, add_flag, count, loading_modules, measurement_parser, run_command


def build_parser() -> Parser:
    """Build the parser of run_class_similarity.py."""
    parser = measurement_parser(
        "run_class_similarity.py",
        "class_similarity",
        "Measure the mean cosine similarity between the class means of the last features (flattened, pooled and\n"
        "centred), and the variance within and between classes.",
        10000,
        """examples:
  python run_class_similarity.py                                every run in results/ that is not measured yet
  python run_class_similarity.py results/RUN --checkpoint=all   similarity over training
  python run_class_similarity.py --split=test --tag=test        on test images: class_similarity-test.json""",
    )
    add_flag(parser, "split", "train", "Split of the data set to measure on, unaugmented", choices=("train", "test"))
    add_flag(parser, "batch_size", 256, "Images per batch. Changes memory and speed, not the result", count)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code: 0, or 1 if a run was left out."""
    args = build_parser().parse_args(argv)
    with loading_modules():
        from normstudy.measures import CLASS_SIMILARITY, measure_runs
    return measure_runs(args, CLASS_SIMILARITY)


if __name__ == "__main__":
    run_command(main)
