"""The report on the runs of some tables: reads, computes, draws, writes."""

import os
import sys
from pathlib import Path

from normstudy.cli import RunError, progress_bar
from normstudy.plots import PROBE_TITLES
from normstudy.report.comparison import compare_tables, comparison_html
from normstudy.report.correlation import correlate_measures
from normstudy.report.granulation import granulated_table
from normstudy.report.measure_figures import draw_heatmap, draw_outcome
from normstudy.report.network_figures import (
    draw_densities,
    draw_depth,
    draw_depth_of_groupings,
    draw_iterations,
    evenly_chosen,
    read_probe_statistics,
)
from normstudy.report.norm_figures import draw_groupings, draw_ranking
from normstudy.report.original_claims import original_claims_html
from normstudy.report.page import details_html, escaped, list_html, picture_html, render_page
from normstudy.report.page_tables import (
    cells_table_html,
    correlations_table_html,
    granulated_table_html,
    ranking_table_html,
    runs_table_html,
)
from normstudy.report.published_claims import published_claims, published_claims_html
from normstudy.report.rankings import rank_norms, rank_norms_by_network, summarize_cells
from normstudy.report.sentences import METHODS, limitation_sentences, summary_sentences
from normstudy.report.tables import MEASURES, MIN_POINTS, average_over_seeds, in_largest_cells, read_tables
from normstudy.storage import PROBE_KEYS, RunDirectory, git_commit, remove_leftovers, write_bytes

LINKED = ("summary.json", "metrics.csv", "curves.png", "probes.png", "hessian.png", "class_similarity.png")


def _counted(count, noun):
    return f"{count} {noun}" + "s" * (count != 1)


class Report:
    """The report on the runs of some tables."""

    def __init__(self, args, paths, results_dir):

        self.args, self.paths, self.results_dir = args, paths, results_dir
        self.table = read_tables(paths)
        self.other = read_tables(args.compare.split(",")) if args.compare else None
        self.folders = self.run_directories()
        self.figures = []

    def run_directories(self):
        """[(row, RunDirectory)] of the runs whose folders lie beside their table."""

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

        with progress_bar(5, "report", unit="part") as bar:
            probed = self.probes()
            table, measures = self.with_probes(MEASURES, probed)
            self.titles = measures
            bar.update()
            settings = average_over_seeds(table)
            there = {name: title for name, title in measures.items() if settings[name].notna().sum() >= MIN_POINTS}
            options = {"resamples": self.args.resamples, "seed": self.args.seed}
            ranks, by_network = rank_norms(table, **options), rank_norms_by_network(table, **options)
            groupings = rank_norms(table[table["Grouping"].notna()], label="Label", **options)
            cells = summarize_cells(table)
            correlations = correlate_measures(settings, there, **options)
            bar.update()
            granulated = granulated_table(settings, there, **options)
            bar.update()
            self.draw(table, there, by_network, correlations, granulated, probed)
            bar.update()
            frames = {"ranking": ranks, "groupings": groupings, "by_cell": cells}
            frames |= {"correlations": correlations, "granulated": granulated}
            frames["claims"] = published_claims(table, probed)
            if self.other is not None:
                same = tuple(self.args.same_data.split(",")) if self.args.same_data else ()
                frames["orders"], frames["signs"] = compare_tables(table, self.other, same, **options)
            for name, frame in frames.items():
                write_bytes(self.results_dir / "tables" / f"{name}.csv", frame.to_csv(index=False).encode())
            sections = self.sections(table, frames, by_network)
            title = f"Normalization: a report on {_counted(len(table), 'run')}"
            path = self.results_dir / "report.html"
            write_bytes(path, render_page(title, sections, self.versions()).encode("utf-8", "replace"))
            bar.update()
        return path

    def probes(self):
        found = []
        for row, run in evenly_chosen(self.folders):
            try:
                found += read_probe_statistics([(row, run)])
            except RunError as error:
                print(f"left out: {error}", file=sys.stderr)
        return found

    def with_probes(self, measures, probed):
        """(the table with probe statistics at the first and last iteration, means over sites; {measure: title})."""
        import numpy as np
        import pandas as pd

        names = {(key, moment): f"{key} {moment}" for key in PROBE_KEYS for moment in ("first", "last")}
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
        titles = {name: f"{PROBE_TITLES[key]}, {moments[moment]}" for (key, moment), name in names.items()}
        return pd.concat([self.table, columns], axis=1), dict(measures) | titles

    def draw(self, table, measures, by_network, correlations, granulated, probed):
        """Draws what there is to draw; self.figures gets (path, words, section)."""

        folder = self.results_dir / "figures"
        remove_leftovers(folder, ".*.tmp")

        def add(name, section, words, draw, *arguments):
            if draw(*arguments, folder / f"{name}.png") is not False:
                self.figures.append((folder / f"{name}.png", words, section))

        if by_network:
            words = "Test accuracy above the mean of norms in cells of equal hyperparameters, with 95 % intervals."
            add("ranking", "norms", words, draw_ranking, by_network)
            words = "Test accuracy by grouping: mean and standard deviation over runs."
            add("groupings", "norms", words, draw_groupings, table)
        if measures:
            words = "Every measure and outcome; * where p < 0.05 after Holm. Ψ: granulated."
            add("correlations", "measures", words, draw_heatmap, correlations, granulated, measures)
            shown = {name: title for name, title in measures.items() if not name.endswith((" first", " last"))}
            for outcome in ("Test Accuracy", "Train Accuracy", "Gen. Ratio", "Gap"):
                name = f"measures_{outcome.lower().replace('. ', '_').replace(' ', '_')}"
                words = (
                    f"{outcome} against each measure; a grey line is the trend in one cell of equal hyperparameters."
                )
                if shown:
                    add(name, "measures", words, draw_outcome, table, outcome, shown)
        where = " in the cell of each network that has most of them"
        words = (
            f"Spectral density of the Hessian: the first run of each norm{where}. A Ritz value is 0.1 wide in asinh λ."
        )
        measured = [(row, run) for row, run in self.folders if run.measurement("hessian").exists()]
        add("densities", "inside", words, draw_densities, in_largest_cells(measured))
        by_norm = in_largest_cells(probed)
        by_grouping = in_largest_cells(probed, "Grouping")
        for moment, when in (("first", "the first iteration"), ("last", "the last recorded iteration")):
            words = f"Statistics over depth at {when}: means over a norm's runs{where}."
            if moment == "first":
                words += " The head of a ViT starts from zero, so no gradient passes it then."
            add(f"depth_{moment}", "inside", words, draw_depth, by_norm, moment, PROBE_KEYS)
            words = f"Grouped norm with most groupings over depth at {when}: means over runs{where}."
            add(f"groupings_{moment}", "inside", words, draw_depth_of_groupings, by_grouping, moment)
        words = f"Activation variance over depth at the first iteration: means over a norm's runs{where}."
        add("variance", "papers", words, draw_depth, by_norm, "first", ("activation_variance",))
        words = f"Statistics over training: means over sites and a norm's runs{where}."
        add("iterations", "inside", words, draw_iterations, by_norm)

    def comparison(self, frames):
        """HTML that sets --compare beside the runs, or nothing."""
        if self.other is None:
            return ""
        same = self.args.same_data.replace(",", " and ")
        words = f"{len(self.other)} runs of {self.args.compare}{f'; {same} are taken for one' if same else ''}."
        return f"<p>{escaped(words)}</p>{comparison_html(frames['orders'], frames['signs'])}"

    def sections(self, table, frames, by_network):
        """[(heading, HTML)]."""

        pictures = {
            section: "".join(picture_html(path, said) for path, said, where in self.figures if where == section)
            for section in ("norms", "measures", "papers", "inside")
        }
        ranks, correlations, granulated = frames["ranking"], frames["correlations"], frames["granulated"]
        original = original_claims_html(table, ranks, correlations, granulated, self.titles)
        failed = int(table["has_failed"].sum())
        found = summary_sentences(table, by_network, correlations, granulated, self.titles)
        if len(table) == 0:
            found_html = "<p>There are no runs yet.</p>"
        elif found:
            found_html = f'<div class="summary">{list_html(found)}</div>'
        else:
            found_html = (
                "<p>These runs support no finding: no difference or correlation has an interval without zero.</p>"
            )
        norms = table["Norm"].nunique()
        about = f"<p>{_counted(len(table), 'run')}, {failed} of which failed; {_counted(norms, 'norm')}.</p>"
        cannot = limitation_sentences(table, by_network, correlations)
        summary = about + found_html + ("<h3>What these runs cannot say</h3>" + list_html(cannot) if cannot else "")
        norms = "<p>No run ended with an accuracy.</p>"
        if len(ranks):
            norms = pictures["norms"]
            for network, own in by_network.items():
                norms += f"<h3>{escaped(network)}</h3>" + ranking_table_html(own, "Norm")
            if len(by_network) > 1:
                norms += details_html("All networks together", ranking_table_html(ranks, "Norm"))
            norms += details_html(
                "Every cell: means, standard deviations, n, failures", cells_table_html(frames["by_cell"])
            )
        if len(frames["groupings"]) > 1:
            norms += details_html("Norms by grouping", ranking_table_html(frames["groupings"], "Label"))
        measures = f"<p>No measure is there for {MIN_POINTS} settings or more.</p>"
        if len(granulated):
            measures = pictures["measures"]
            measures += details_html("All coefficients", correlations_table_html(correlations, self.titles))
            measures += details_html("Granulated, with worst cases", granulated_table_html(granulated, self.titles))
        links = {row["run"]: self.links(run) for row, run in self.folders}
        sections = [
            ("Summary", summary),
            ("Which norm is best, and where", norms),
            ("What goes with generalization", measures),
            ("Claims of the original study", original),
            ("Claims of papers", pictures["papers"] + published_claims_html(frames["claims"])),
            ("Beside another table", self.comparison(frames)),
            ("Inside the networks", pictures["inside"]),
            ("Runs", runs_table_html(table, links)),
            ("Methods", list_html(METHODS)),
        ]
        return [(heading, content) for heading, content in sections if content]

    def links(self, run):
        """(a run's folder as the page names it, those of its files that are there)."""
        path = os.path.relpath(run.path, self.results_dir)
        return Path(path).as_posix(), [name for name in LINKED if (run.path / name).exists()]

    def versions(self):
        import platform
        from importlib.metadata import version

        parts = [f"{name} {version(name)}" for name in ("numpy", "pandas", "scipy", "matplotlib")]
        commit = f"; program {git_commit()[:12]}" if git_commit() else ""
        tables = ", ".join(map(str, self.paths))
        return (
            f"Made from {tables} with {self.args.resamples:,} resamples (seed {self.args.seed}); Python "
            f"{platform.python_version()}, {', '.join(parts)}{commit}."
        )
