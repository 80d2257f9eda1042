"""What the runs of a folder, or any tables of runs, say: report.html, figures/*.png and tables/*.csv.

    python run_report.py
    python run_report.py --table=study.csv,results/results.csv

The statistics, pictures and sentences are in normstudy/report/.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from normstudy.cli import Parser, UsageError, add_flag, boolean, loading_modules, number, run_command
from normstudy.storage import collect_table, read_csv


def build_parser() -> Parser:
    """run_report.py's parser."""
    parser = Parser(
        prog="run_report.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python run_report.py [--flag=value ...]",
        description="""What runs say: which norm does best where, what goes with generalization, and how sure that is.
Writes report.html (one page, opens offline), figures/*.png and tables/*.csv into results_dir.""",
        epilog="""examples:
  python run_report.py                                    the runs in results/
  python run_report.py --table=a.csv,b.csv                any tables with the columns of results.csv, stacked
  python run_report.py --compare=study.csv                other runs' trends beside these
  python run_report.py --collect                          results.csv and its README.md alone, rebuilt
exit codes: 0 done, 1 a failure, 2 wrong flags, 130 Ctrl-C""",
    )
    add_flag(parser, "results_dir", "results", "folder that holds the run directories, and gets the report")
    add_flag(parser, "table", None, "tables of runs to report on, separated by commas (default: that of results_dir)")
    add_flag(parser, "compare", None, "tables whose trends are set beside these, for the cells that both have")
    add_flag(parser, "same_data", "", "data sets that --compare takes for one, such as ImageFolder,CIFAR-10")
    add_flag(parser, "resamples", 1000, "of each interval", number(int, low=100, high=100_000))
    add_flag(parser, "seed", 0, "of the resamples", number(int, low=0))
    add_flag(parser, "collect", False, "rebuild results.csv and README.md in results_dir, and end", boolean)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    args = build_parser().parse_args(argv)
    results_dir = Path(args.results_dir)
    if args.table is not None:
        if args.collect:
            raise UsageError("--collect rebuilds the table of results_dir; leave --table out")
        tables = [Path(name) for name in args.table.split(",")]
    else:
        if not results_dir.is_dir():
            raise UsageError(f"--results_dir={results_dir} is not a folder")
        tables = [collect_table(results_dir)]
    if args.collect:
        [path] = tables
        print(f"{path}: {len(read_csv(path))} runs; {path.with_name('README.md')} says what its columns mean")
        return 0
    with loading_modules():
        from normstudy.report import ReportOptions, write_report
    compared = args.compare.split(",") if args.compare else ()
    same_data = args.same_data.split(",") if args.same_data else ()
    page = write_report(ReportOptions(tables, results_dir, compared, same_data, args.resamples, args.seed))
    print(f"{page} is there ({page.stat().st_size / 1e6:.1f} MB); figures and tables lie beside it")
    return 0


if __name__ == "__main__":
    run_command(main)
