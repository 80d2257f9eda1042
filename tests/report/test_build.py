"""The complete report on made-up tables, unusual tables and real runs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_helpers import made_up, of_norms, report, section_of

import run_report
from normstudy.cli import RunError, UsageError
from normstudy.report import rankings, tables

ROOT = Path(__file__).parents[2]
SECTIONS = ["Summary", "Which norm is best, and where", "Correlations with generalization (exploratory)"]
SECTIONS += ["Effects of hyperparameters (exploratory)", "Published claims", "Explorer", "Runs", "Methods"]


def test_the_page_has_every_section_and_needs_nothing_else(made):
    page = (made / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2><a[^>]*>(.*?)</a></h2>", page) == SECTIONS
    own = page.partition("<script>")[0]  # Vega names its schemas by address, but loads nothing
    assert set(re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", own)) == {
        *(
            f"tables/{name}.csv"
            for name in ("ranking", "baseline", "by_cell", "groupings", "correlations", "granulated")
        ),
        *("tables/claims.csv", "tables/runs_of_finding_1.csv", "../table.csv"),
        *(f"figures/{path.name}" for path in (made / "figures").glob("*.svg")),
    }
    assert "http://" not in own
    assert "https://" not in own
    assert own.count("<img") == len(list((made / "figures").glob("*.png"))) >= 6


def test_the_tables_are_the_statistics(made):
    table = tables.read_tables([made.parent / "table.csv"])
    ranks = pd.read_csv(made / "tables" / "ranking.csv")
    pd.testing.assert_frame_equal(ranks, rankings.rank_norms(table), check_dtype=False)
    correlations = pd.read_csv(made / "tables" / "correlations.csv")
    assert set(correlations["measure"]) == {"Trace", "Max Eigen", "Class Similarity"}
    assert {"by_cell.csv", "granulated.csv", "groupings.csv", "baseline.csv"} <= {
        path.name for path in (made / "tables").iterdir()
    }


def test_the_same_command_gives_the_same_page(made, tmp_path):
    before = (made / "report.html").read_bytes()
    argv = [f"--table={made.parent / 'table.csv'}", f"--results_dir={made}", "--resamples=100"]
    assert run_report.main(argv) == 0
    assert (made / "report.html").read_bytes() == before


def test_a_picture_that_cannot_be_drawn_costs_only_itself(tmp_path, capsys):
    for name in ("ranking", "finding_1"):
        (tmp_path / "out" / "figures" / f"{name}.png").mkdir(parents=True)
    page = report(tmp_path, of_norms(made_up(160)))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" could not be drawn (")[0].rpartition("/")[2] for line in lines] == [
        "finding_1.png",
        "ranking.png",
    ]
    assert "figures/groupings." in page
    assert "figures/ranking." not in page
    assert "figures/finding_1." not in page


def test_another_table_is_set_beside(tmp_path):
    other = of_norms(made_up(40, seed=1)).assign(Dataset="other", Model="VGG", **{"Batch Size": 16})
    other.to_csv(tmp_path / "other.csv", index=False)
    flags = [f"--compare={tmp_path / 'other.csv'}", "--same_data=other,CIFAR-10"]
    page = report(tmp_path, of_norms(made_up()).assign(weight_decay=0), *flags)
    section = section_of(page, "Comparison with another table")
    assert f"40 runs of {tmp_path / 'other.csv'}; other and CIFAR-10 count as one data set." in section
    [order] = pd.read_csv(tmp_path / "out" / "tables" / "orders.csv").to_dict("records")
    assert (order["cell"], order["norms"]) == ("vgg, CIFAR-10, batch 16, momentum and weight decay on, SkipInit off", 6)
    signs = pd.read_csv(tmp_path / "out" / "tables" / "signs.csv").set_index(["measure", "outcome"])
    row = signs.loc[("Class Similarity", "Test Accuracy")]
    assert min(row["rho here"], row["rho there"]) >= 0.9
    assert row["verdict"] == "inconclusive: an interval includes zero"  # five norms are few
    with pytest.raises(RunError, match=r"nowhere\.csv cannot be read"):
        report(tmp_path, made_up(), f"--compare={tmp_path / 'nowhere.csv'}")


def test_nothing_of_an_earlier_report_is_left(tmp_path):
    made_up(40, seed=1).assign(Model="VGG", Dataset="other").to_csv(tmp_path / "other.csv", index=False)
    out = tmp_path / "out"
    report(tmp_path, of_norms(made_up(160)), f"--compare={tmp_path / 'other.csv'}")
    assert pd.read_csv(out / "tables" / "signs.csv").empty  # no common cell
    assert (out / "figures" / "finding_1.svg").exists()
    report(tmp_path, made_up(4))
    left = {path.name for folder in ("figures", "tables") for path in (out / folder).iterdir()}
    assert not {name for name in left if "finding" in name or name in ("orders.csv", "signs.csv")}


def odd(name):
    table = made_up(20)
    if name == "no runs":
        return table.iloc[:0]
    if name == "one run":
        return table.iloc[:1]
    if name == "one norm":
        return table.assign(Norm="Plain")
    if name == "all failed":
        return table.assign(Success=False)
    if name == "constant":
        return table.assign(**{"Class Similarity": 0.5, "Test Accuracy": 10.0, "Trace": 1.0, "Max Eigen": 2.0})
    if name == "not numbers":
        return table.assign(**{"Class Similarity": "nan", "Trace": "inf", "Train Accuracy": 0.0})
    if name == "unknown names":
        return table.assign(Norm="MyNorm $x_1$", Model="net<b>", Dataset="ünï")
    if name == "few columns":
        return table[["Model", "Norm", "Dataset", "Batch Size", "Test Accuracy"]]
    return table.assign(**{"Max Eigen": -table["Max Eigen"], "Trace": 0.0, "P Grouping": np.nan})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name",
    [
        "no runs",
        "one run",
        "one norm",
        "all failed",
        "constant",
        "not numbers",
        "unknown names",
        "few columns",
        "negative",
    ],
)
def test_odd_tables_get_a_page_that_says_so_and_no_warning(tmp_path, capfd, name):
    made_up(20).to_csv(tmp_path / "other.csv", index=False)
    page = report(tmp_path, odd(name), f"--compare={tmp_path / 'other.csv'}")
    assert page.endswith("</html>\n")
    assert capfd.readouterr().err == ""
    words = {
        "no runs": "There are no runs yet",
        "all failed": "20 of 20 failed",
        "constant": "There is no primary analysis",
    }
    assert words.get(name, ">Summary</a></h2>") in page
    if name in ("no runs", "one run", "all failed", "constant"):
        assert "goes with" not in page


def test_tables_are_stacked_and_damage_is_one_line(tmp_path):
    made_up(20).to_csv(tmp_path / "a.csv", index=False)
    made_up(10, seed=1).to_csv(tmp_path / "b.csv", index=False)
    flags = [f"--table={tmp_path / 'a.csv'},{tmp_path / 'b.csv'}", f"--results_dir={tmp_path}", "--resamples=100"]
    assert run_report.main(flags) == 0
    assert "30 runs" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "b.csv").write_bytes(b"\x00\xff")
    done = subprocess.run([sys.executable, ROOT / "run_report.py", *flags], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "b.csv" in done.stderr


def test_a_filter_chooses_runs_by_their_columns(tmp_path):
    page = report(tmp_path, made_up(), "--filter=model=vgg,Batch Size=256")
    assert "a report on 40 runs" in page
    for wrong, said in (("Modell=vgg", "has no column 'Modell'"), ("Model=lenet", "no run has Model=lenet")):
        with pytest.raises(UsageError, match=said):
            report(tmp_path, made_up(), f"--filter={wrong}")
    with pytest.raises(SystemExit, match="2"):
        report(tmp_path, made_up(), "--filter=vgg")


@pytest.mark.parametrize("flag", ["filter=Model=vgg", "baseline=Plain", "compare=a.csv", "same_data=a,b"])
def test_collecting_takes_no_flags_of_the_report(tmp_path, flag):
    with pytest.raises(UsageError, match=f"leave out --{flag.partition('=')[0]}"):
        run_report.main([f"--results_dir={tmp_path}", "--collect", f"--{flag}"])


def test_a_thousand_runs_fit_into_five_megabytes(tmp_path):
    page = report(tmp_path, made_up(1000))
    assert len(page.encode()) < 5e6
    assert page.count("<tr>") > 1000


def test_runs_have_links_that_lead_to_files(real):
    page = (real / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'href="(?!data:|#)([^"]+)"', page.partition("<script>")[0])
    assert len([link for link in links if not link.startswith(("tables/", "figures/", "results.csv"))]) == 6 * 6
    assert all((real / link).is_file() for link in links)
