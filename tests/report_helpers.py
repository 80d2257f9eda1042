"""Helpers: made-up tables of runs, reports on them, and the table rows of a page."""

import html
import re

import numpy as np
import pandas as pd

import run_report
from normstudy.report import tables

NORMS = ("BatchNorm", "EvoNormBO", "InstanceNorm", "Plain", "GroupNorm")


def made_up(n=160, seed=0):
    """Return a table of n runs of NORMS.

    Class similarity correlates with accuracy, EvoNormBO is best and InstanceNorm is worst.
    """
    generator = np.random.default_rng(seed)
    norms = ["BatchNorm", "EvoNormBO", "Instance_Normalization", "Plain", "GroupNorm"]
    norm = np.array([norms[index % 5] for index in range(n)])
    bonus = pd.Series(norm).map({"EvoNormBO": 6, "BatchNorm": 4, "Instance_Normalization": -9, "Plain": -6}).fillna(0)
    similarity = generator.normal(size=n)
    rows = {
        "Model": ["VGG" if index % 2 else "ResNet-56" for index in range(n)],
        "Norm": norm,
        "Dataset": "CIFAR-10",
        "Batch Size": [16 if index % 4 < 2 else 256 for index in range(n)],
        "Trace": np.exp(generator.normal(size=n)),
        "Max Eigen": np.exp(generator.normal(size=n)),
        "Test Accuracy": (60 + bonus - 4 * similarity + generator.normal(size=n)).round(3),
        "Class Similarity": similarity,
        "Mom & WD": True,
        "Train Accuracy": (80 + generator.normal(size=n)).round(3),
        "SkipInit": False,
        "Success": True,
        "P Grouping": generator.choice([8.0, 0.5], n),
        "weight_decay": [index // 20 for index in range(n)],
    }
    return pd.DataFrame(rows)


def of_norms(table):
    """Return the table with a class similarity that depends only on norm and grouping, not on the run."""
    means = table.groupby(["Norm", "P Grouping"])["Test Accuracy"].transform("mean")
    return table.assign(**{"Class Similarity": means})


def report(folder, table, *flags):
    """Write the report on a table into folder/out; return the text of the page."""
    table.to_csv(folder / "table.csv", index=False)
    own = [f"--table={folder / 'table.csv'}", f"--results_dir={folder / 'out'}", "--resamples=100"]
    assert run_report.main([*own, *flags]) == 0
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


def section_of(page, title):
    """Return the HTML of a section of the page."""
    return page.partition(f">{title}</a></h2>")[2].partition("<h2>")[0]


def random_runs(n=60, seed=0, **columns):
    """Return a tidy table of n runs whose class similarity correlates with accuracy; `columns` replace its columns."""
    generator = np.random.default_rng(seed)
    similarity = generator.normal(size=n).round(1)  # with ties
    made = {
        "Model": generator.choice(["VGG", "ResNet-56"], n),
        "Norm": generator.choice(["BatchNorm", "Instance_Normalization", "GroupNorm", "plain"], n),
        "Dataset": "CIFAR-10",
        "Batch Size": generator.choice(["16", "256"], n),
        "Mom & WD": generator.choice(["True", "False"], n),
        "Success": "True",
        "P Grouping": generator.choice(["8.0", "32.0"], n),
        "Class Similarity": similarity.astype(str),
        "Max Eigen": generator.normal(size=n).astype(str),
        "Test Accuracy": (50 - 5 * similarity + generator.normal(size=n)).round(2).astype(str),
        "Train Accuracy": (60 + 5 * generator.normal(size=n)).astype(str),
    }
    return tables.tidy_table(pd.DataFrame(made | columns))


def runs_of(rows):
    """Return a tidy table with a run for each row (dict); missing keys get the same value in every run."""
    about = {"Model": "VGG", "Dataset": "CIFAR-10", "Batch Size": "256", "Mom & WD": "True", "SkipInit": "False"}
    about |= {"Success": "True", "Test Accuracy": "70", "Train Accuracy": "80"}
    return tables.tidy_table(pd.DataFrame([about | {key: str(value) for key, value in row.items()} for row in rows]))


def table_rows(page):
    """Return the rows of the tables in a page, as lists of text."""
    found = re.findall(r"<tr>(<td.*?)</tr>", page)
    return [[html.unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)] for row in found]
