"""What the runs of a folder, or any tables of runs, say: report.html, figures/*.png and tables/*.csv.

    python run_report.py
    python run_report.py --table=study.csv,results/results.csv

Statistics are in findings.py and rankings.py, words in report_words.py, pictures in report_figures.py, HTML in
report_page.py.
"""

from errors import RunError, UsageError, run_command, start_script

if __name__ == "__main__":
    start_script()

import argparse
import os
import sys
from pathlib import Path

import table as results_table
from config import progress_bar
from files import read_csv, remove_leftovers, write_bytes
from flags import Parser, add_flag, boolean, number

LINKED = ("summary.json", "metrics.csv", "curves.png", "probes.png", "hessian.png", "class_similarity.png")


def build_parser():
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


if __name__ == "__main__":
    build_parser().parse_args()  # --help and wrong flags answer before pandas, scipy and torch load


def main(argv=None):
    """Runs one command line and returns its exit code."""
    args = build_parser().parse_args(argv)
    results_dir = Path(args.results_dir)
    if args.table is None and not results_dir.is_dir():
        raise UsageError(f"--results_dir={results_dir} is not a folder")
    if args.table is None:
        path = results_table.collect(results_dir)
    if args.collect:
        if args.table is not None:
            raise UsageError("--collect rebuilds the table of results_dir; leave --table out")
        print(f"{path}: {len(read_csv(path))} runs; {path.with_name('README.md')} says what its columns mean")
        return 0
    paths = [path] if args.table is None else [Path(name) for name in args.table.split(",")]
    page = Report(args, paths, results_dir).write()
    print(f"{page} is there ({page.stat().st_size / 1e6:.1f} MB); figures and tables lie beside it")
    return 0


def _counted(count, noun):
    return f"{count} {noun}" + "s" * (count != 1)


class Report:
    """The report on the runs of some tables."""

    def __init__(self, args, paths, results_dir):
        import findings

        self.args, self.paths, self.results_dir = args, paths, results_dir
        self.table = findings.read_tables(paths)
        self.other = findings.read_tables(args.compare.split(",")) if args.compare else None
        self.folders = self.run_directories()
        self.figures = []

    def run_directories(self):
        """[(row, RunDirectory)] of the runs whose folders lie beside their table."""
        from runs import RunDirectory

        found = []
        for row in self.table.to_dict("records"):
            name = row.get("run")
            if isinstance(name, str) and name and Path(name).name == name:
                folder = Path(row["table"]).parent / name
                if folder.is_dir():
                    found.append((row, RunDirectory(folder)))
        return found

    def write(self):
        """Writes everything and returns the path of the page."""
        import claims
        import findings
        import rankings
        import report_figures
        import report_page
        import report_words

        with progress_bar(5, "report", unit="part") as bar:
            probed = self.probes(report_figures)
            table, measures = self.with_probes(findings.MEASURES, probed)
            self.titles = measures
            bar.update()
            settings = findings.over_seeds(table)
            there = {name: title for name, title in measures.items() if settings[name].notna().sum() >= findings.LEAST}
            options = {"resamples": self.args.resamples, "seed": self.args.seed}
            ranks, by_network = rankings.ranking(table, **options), rankings.ranking_by_network(table, **options)
            groupings = rankings.ranking(table[table["Grouping"].notna()], label="Label", **options)
            cells = rankings.by_cell(table)
            correlations = findings.correlations(settings, there, **options)
            bar.update()
            granulated = findings.granulated_table(settings, there, **options)
            bar.update()
            self.draw(report_figures, table, there, by_network, correlations, granulated, probed)
            bar.update()
            frames = {"ranking": ranks, "groupings": groupings, "by_cell": cells}
            frames |= {"correlations": correlations, "granulated": granulated}
            frames["claims"] = claims.published(table, probed)
            if self.other is not None:
                same = tuple(self.args.same_data.split(",")) if self.args.same_data else ()
                frames["orders"], frames["signs"] = claims.beside(table, self.other, same, **options)
            for name, frame in frames.items():
                write_bytes(self.results_dir / "tables" / f"{name}.csv", frame.to_csv(index=False).encode())
            sections = self.sections(report_page, report_words, claims, table, frames, by_network)
            title = f"Normalization: a report on {_counted(len(table), 'run')}"
            path = self.results_dir / "report.html"
            write_bytes(path, report_page.page(title, sections, self.versions()).encode("utf-8", "replace"))
            bar.update()
        return path

    def probes(self, report_figures):
        found = []
        for row, run in report_figures.chosen(self.folders):
            try:
                found += report_figures.read_probes([(row, run)])
            except RunError as error:
                print(f"left out: {error}", file=sys.stderr)
        return found

    def with_probes(self, measures, probed):
        """(the table with probe statistics at the first and last iteration, means over sites; {measure: title})."""
        import numpy as np
        import pandas as pd

        from plots import TITLES
        from probes import KEYS

        names = {(key, moment): f"{key} {moment}" for key in KEYS for moment in ("first", "last")}
        values = {}
        for row, part in probed:
            means = {}
            for (key, moment), name in names.items():
                finite = part[key][moment][np.isfinite(part[key][moment])]
                means[name] = finite.mean() if len(finite) else np.nan
            values[row["table"], row["run"]] = means
        if not values:
            return self.table, dict(measures)
        keys = zip(self.table["table"], self.table["run"], strict=True)
        columns = pd.DataFrame([values.get(key, {}) for key in keys], index=self.table.index)
        moments = {"first": "first iteration", "last": "last iteration"}
        titles = {name: f"{TITLES[key]}, {moments[moment]}" for (key, moment), name in names.items()}
        return pd.concat([self.table, columns], axis=1), dict(measures) | titles

    def draw(self, report_figures, table, measures, by_network, correlations, granulated, probed):
        """Draws what there is to draw; self.figures gets (path, words, section)."""
        import findings

        folder = self.results_dir / "figures"
        remove_leftovers(folder, ".*.tmp")

        def add(name, section, words, draw, *arguments):
            if draw(*arguments, folder / f"{name}.png") is not False:
                self.figures.append((folder / f"{name}.png", words, section))

        if by_network:
            words = "Test accuracy above the mean of norms in cells of equal hyperparameters, with 95 % intervals."
            add("ranking", "norms", words, report_figures.draw_ranking, by_network)
            words = "Test accuracy by grouping: mean and standard deviation over runs."
            add("groupings", "norms", words, report_figures.draw_groupings, table)
        if measures:
            words = "Every measure and outcome; * where p < 0.05 after Holm. Ψ: granulated."
            add("correlations", "measures", words, report_figures.draw_heatmap, correlations, granulated, measures)
            shown = {name: title for name, title in measures.items() if not name.endswith((" first", " last"))}
            for outcome in ("Test Accuracy", "Train Accuracy", "Gen. Ratio", "Gap"):
                name = f"measures_{outcome.lower().replace('. ', '_').replace(' ', '_')}"
                words = (
                    f"{outcome} against each measure; a grey line is the trend in one cell of equal hyperparameters."
                )
                if shown:
                    add(name, "measures", words, report_figures.draw_outcome, table, outcome, shown)
        where = " in the cell of each network that has most of them"
        words = (
            f"Spectral density of the Hessian: the first run of each norm{where}. A Ritz value is 0.1 wide in asinh λ."
        )
        measured = [(row, run) for row, run in self.folders if run.measurement("hessian").exists()]
        add("densities", "inside", words, report_figures.draw_densities, findings.in_largest_cells(measured))
        by_norm = findings.in_largest_cells(probed)
        by_grouping = findings.in_largest_cells(probed, "Grouping")
        for moment, when in (("first", "the first iteration"), ("last", "the last recorded iteration")):
            words = f"Statistics over depth at {when}: means over a norm's runs{where}."
            if moment == "first":
                words += " The head of a ViT starts from zero, so no gradient passes it then."
            add(f"depth_{moment}", "inside", words, report_figures.draw_depth, by_norm, moment, report_figures.KEYS)
            words = f"Grouped norm with most groupings over depth at {when}: means over runs{where}."
            add(f"groupings_{moment}", "inside", words, report_figures.draw_depth_of_groupings, by_grouping, moment)
        words = f"Activation variance over depth at the first iteration: means over a norm's runs{where}."
        add("variance", "papers", words, report_figures.draw_depth, by_norm, "first", ("activation_variance",))
        words = f"Statistics over training: means over sites and a norm's runs{where}."
        add("iterations", "inside", words, report_figures.draw_iterations, by_norm)

    def beside(self, page, claims, frames):
        """HTML that sets --compare beside the runs, or nothing."""
        if self.other is None:
            return ""
        same = self.args.same_data.replace(",", " and ")
        words = f"{len(self.other)} runs of {self.args.compare}{f'; {same} are taken for one' if same else ''}."
        return f"<p>{page.escaped(words)}</p>{claims.beside_html(frames['orders'], frames['signs'])}"

    def sections(self, page, words, claims, table, frames, by_network):
        """[(heading, HTML)]."""
        import findings

        pictures = {
            section: "".join(page.picture(path, said) for path, said, where in self.figures if where == section)
            for section in ("norms", "measures", "papers", "inside")
        }
        ranks, correlations, granulated = frames["ranking"], frames["correlations"], frames["granulated"]
        original = claims.of_the_original(table, ranks, correlations, granulated, self.titles)
        failed = int(table["has_failed"].sum())
        found = words.summary(table, by_network, correlations, granulated, self.titles)
        if len(table) == 0:
            found_html = "<p>There are no runs yet.</p>"
        elif found:
            found_html = f'<div class="summary">{page.listed(found)}</div>'
        else:
            found_html = (
                "<p>These runs support no finding: no difference or correlation has an interval without zero.</p>"
            )
        norms = table["Norm"].nunique()
        about = f"<p>{_counted(len(table), 'run')}, {failed} of which failed; {_counted(norms, 'norm')}.</p>"
        cannot = words.cannot_say(table, by_network, correlations)
        summary = about + found_html + ("<h3>What these runs cannot say</h3>" + page.listed(cannot) if cannot else "")
        norms = "<p>No run ended with an accuracy.</p>"
        if len(ranks):
            norms = pictures["norms"]
            for network, own in by_network.items():
                norms += f"<h3>{page.escaped(network)}</h3>" + page.ranking_table(own, "Norm")
            if len(by_network) > 1:
                norms += page.details("All networks together", page.ranking_table(ranks, "Norm"))
            norms += page.details(
                "Every cell: means, standard deviations, n, failures", page.cells_table(frames["by_cell"])
            )
        if len(frames["groupings"]) > 1:
            norms += page.details("Norms by grouping", page.ranking_table(frames["groupings"], "Label"))
        measures = f"<p>No measure is there for {findings.LEAST} settings or more.</p>"
        if len(granulated):
            measures = pictures["measures"]
            measures += page.details("All coefficients", page.correlations_table(correlations, self.titles))
            measures += page.details("Granulated, with worst cases", page.granulated_rows(granulated, self.titles))
        links = {row["run"]: self.links(run) for row, run in self.folders}
        sections = [
            ("Summary", summary),
            ("Which norm is best, and where", norms),
            ("What goes with generalization", measures),
            ("Claims of the original study", original),
            ("Claims of papers", pictures["papers"] + claims.published_html(frames["claims"])),
            ("Beside another table", self.beside(page, claims, frames)),
            ("Inside the networks", pictures["inside"]),
            ("Runs", page.runs_table(table, links)),
            ("Methods", page.listed(words.METHODS)),
        ]
        return [(heading, content) for heading, content in sections if content]

    def links(self, run):
        """(a run's folder as the page names it, those of its files that are there)."""
        path = os.path.relpath(run.path, self.results_dir)
        return Path(path).as_posix(), [name for name in LINKED if (run.path / name).exists()]

    def versions(self):
        import platform
        from importlib.metadata import version

        from runs import git_commit

        parts = [f"{name} {version(name)}" for name in ("numpy", "pandas", "scipy", "matplotlib")]
        commit = f"; program {git_commit()[:12]}" if git_commit() else ""
        tables = ", ".join(map(str, self.paths))
        return (
            f"Made from {tables} with {self.args.resamples:,} resamples (seed {self.args.seed}); Python "
            f"{platform.python_version()}, {', '.join(parts)}{commit}."
        )


if __name__ == "__main__":
    run_command(main)
