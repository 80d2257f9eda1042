"""Report what the runs of a folder, or any tables of runs, show: report.html, figures/ (PNG and SVG) and tables/*.csv.

    python run_report.py
    python run_report.py --table=study.csv,results/results.csv

The statistics, pictures and sentences come from normstudy/report/.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from normstudy.cli import (
    Parser,
    UsageError,
    add_flag,
    boolean,
    loading_modules,
    number,
    path_name,
    path_names,
    run_command,
)
from normstudy.storage import collect_table, read_csv


def filters(text: str) -> dict[str, str]:
    """Return {column: value} of a text such as "Model=vgg,Batch Size=256". Raises ValueError for another form."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(column.strip() and equals for column, equals, _ in pairs):
        raise ValueError("give columns and values, such as Model=vgg,Batch Size=256")
    return {column.strip(): value.strip() for column, _, value in pairs}


def build_parser() -> Parser:
    """Build the parser of run_report.py."""
    parser = Parser(
        prog="run_report.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python run_report.py [--flag=value ...]",
        description="""Report what the runs show: which norm performs best in which setting, which measures are related
to generalization, and how certain that is. Writes report.html (one page that needs no network), figures/ (PNG and
SVG) and tables/*.csv into results_dir.""",
        epilog="""examples:
  python run_report.py                                    the runs in results/
  python run_report.py --table=a.csv,b.csv                all runs of several tables with the columns of results.csv
  python run_report.py --compare=study.csv                with the trends of other runs for comparison
  python run_report.py --watch                            rebuild the page as runs end, until Ctrl-C
  python run_report.py --collect                          only rebuild results.csv and README.md
exit codes: 0 done, 1 failed, 2 wrong flags, 130 Ctrl-C""",
    )
    of_runs = "Folder that contains the run directories and receives the report"
    add_flag(parser, "results_dir", "results", of_runs, path_name)
    of_folder = "Tables of runs to report on, separated by commas (default: results.csv of results_dir)"
    add_flag(parser, "table", None, of_folder, path_names)
    add_flag(
        parser,
        "compare",
        None,
        "Tables, separated by commas, whose trends are compared with those of the report, for settings that both have",
        path_names,
    )
    add_flag(parser, "same_data", "", "Data sets that --compare treats as equal, such as ImageFolder,CIFAR-10")
    add_flag(
        parser,
        "filter",
        "",
        "Runs to report on, as columns of the table with their values, such as 'Model=vgg,Batch Size=256'",
        filters,
    )
    add_flag(
        parser,
        "baseline",
        None,
        "Norm to which the differences of the others are computed (default: BatchNorm)",
    )
    add_flag(
        parser, "resamples", 1000, "Number of bootstrap resamples per interval", number(int, low=100, high=100_000)
    )
    add_flag(parser, "seed", 0, "Seed for the bootstrap resamples", number(int, low=0))
    add_flag(
        parser, "collect", False, "Only rebuild results.csv and README.md in results_dir, without a report", boolean
    )
    add_flag(
        parser,
        "watch",
        False,
        "Keep watching the runs in results_dir: rebuild the report when a run has ended, and show the runs in "
        "progress. It does not end by itself, because other runs may start; Ctrl-C ends it and leaves a complete page",
        boolean,
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    args = build_parser().parse_args(argv)
    results_dir = Path(args.results_dir)
    unused = [name for name in ("compare", "same_data", "filter", "baseline", "watch") if getattr(args, name)]
    if args.collect and unused:
        raise UsageError(f"--collect writes no report; leave out --{unused[0]}")
    if args.table is not None:
        if args.collect:
            raise UsageError("--collect rebuilds the table of results_dir; leave out --table")
        if args.watch:
            raise UsageError("--watch follows the run folders in results_dir; leave out --table")
        tables = [Path(name) for name in args.table]
    else:
        if not results_dir.is_dir():
            raise UsageError(f"--results_dir={results_dir} is not a folder")
        tables = [results_dir / "results.csv" if args.watch else collect_table(results_dir)]
    if args.collect:
        [path] = tables
        print(f"{path}: {len(read_csv(path))} runs; {path.with_name('README.md')} explains the columns")
        return 0
    with loading_modules():
        from normstudy.report import ReportOptions, watch_report, write_report
    same_data = args.same_data.split(",") if args.same_data else ()
    options = ReportOptions(
        tables,
        results_dir,
        args.compare or (),
        same_data,
        args.resamples,
        args.seed,
        args.baseline,
        args.filter or {},
        shows_progress=args.table is None,
    )
    if args.watch:
        watch_report(options)
    page = write_report(options)
    print(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB), with figures and tables next to it")
    return 0


if __name__ == "__main__":
    run_command(main)
