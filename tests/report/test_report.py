"""The report on made-up tables, odd ones too, and on real runs; and its page in a real browser."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import NARROW

import config
import main
import run_class_similarity
import run_hessian
import run_report
from normstudy.cli import RunError
from normstudy.plots import style
from normstudy.report import build, network_figures, page, rankings, tables
from normstudy.storage import probe_files

ROOT = Path(__file__).parents[2]
NORMS = ("BatchNorm", "EvoNormBO", "InstanceNorm", "Plain", "GroupNorm")
SECTIONS = ["Summary", "Which norm is best, and where", "What goes with generalization", "Claims of the original study"]
SECTIONS += ["Runs", "Methods"]


def made_up(n=160, seed=0):
    """A table in which class similarity goes with accuracy, EvoNormBO is best and InstanceNorm is worst."""
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
    """The same where class similarity is a matter of norms, and not of single runs."""
    means = table.groupby(["Norm", "P Grouping"])["Test Accuracy"].transform("mean")
    return table.assign(**{"Class Similarity": means})


def report(folder, table, *flags):
    """Writes the report on a table, and returns the page's text."""
    table.to_csv(folder / "table.csv", index=False)
    flags = [f"--table={folder / 'table.csv'}", f"--results_dir={folder / 'out'}", "--resamples=100", *flags]
    assert run_report.main(flags) == 0
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page of a made-up table, with text that must be escaped and two failed runs."""
    folder = tmp_path_factory.mktemp("made")
    table = made_up()
    table.loc[0, "Dataset"] = '<script>document.title="broken"</script>'
    table.loc[[3, 8], ["Success", "Test Accuracy"]] = False, np.nan
    report(folder, table)
    return folder / "out"


def test_the_page_has_every_section_and_needs_nothing_else(made):
    page = (made / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == SECTIONS
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<img") == len(list((made / "figures").glob("*.png"))) >= 6


def test_text_from_disk_is_escaped(made):
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "<script>document" not in page
    assert "&lt;script&gt;document" in page


def test_the_summary_says_what_was_put_in(made):
    summary = (made / "report.html").read_text(encoding="utf-8").partition("<h2>Which")[0]
    assert "EvoNormBO had the highest test accuracy of 5 norms" in summary
    assert "InstanceNorm had the lowest test accuracy" in summary
    assert re.search(r"class similarity goes with (test accuracy|the gap|the ratio)", summary)
    assert "160 runs, 2 of which failed" in summary
    assert "2 of 160 failed (Plain 2)" in summary


def test_claims_are_set_beside_these_runs(made):
    claims = (made / "report.html").read_text(encoding="utf-8").partition("<h2>Claims")[2].partition("<h2>")[0]
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr>(.*?)</tr>", claims)]
    of_norm = {row.strip("|").partition("|")[0]: row.strip("|").rpartition("|")[2] for row in rows}
    assert of_norm["EvoNormBO"] == of_norm["BatchNorm"] == of_norm["InstanceNorm"] == of_norm["Plain"] == "yes"
    assert any("test accuracy" in row and "|pooled|" in row and row.strip("|").endswith("|yes") for row in rows)


def test_the_tables_are_the_statistics(made):
    table = tables.read_tables([made.parent / "table.csv"])
    ranks = pd.read_csv(made / "tables" / "ranking.csv")
    pd.testing.assert_frame_equal(ranks, rankings.rank_norms(table, resamples=100), check_dtype=False)
    correlations = pd.read_csv(made / "tables" / "correlations.csv")
    assert set(correlations["measure"]) == {"Trace", "Max Eigen", "Class Similarity"}
    assert {"by_cell.csv", "granulated.csv", "groupings.csv"} <= {path.name for path in (made / "tables").iterdir()}


def test_the_same_command_gives_the_same_page(made, tmp_path):
    before = (made / "report.html").read_bytes()
    argv = [f"--table={made.parent / 'table.csv'}", f"--results_dir={made}", "--resamples=100"]
    assert run_report.main(argv) == 0
    assert (made / "report.html").read_bytes() == before


def test_another_table_is_set_beside(tmp_path):
    other = of_norms(made_up(40, seed=1)).assign(Dataset="other", Model="VGG", **{"Batch Size": 16})
    other.to_csv(tmp_path / "other.csv", index=False)
    flags = [f"--compare={tmp_path / 'other.csv'}", "--same_data=other,CIFAR-10"]
    page = report(tmp_path, of_norms(made_up()).assign(weight_decay=0), *flags)
    section = page.partition("<h2>Beside another table</h2>")[2].partition("<h2>")[0]
    assert f"40 runs of {tmp_path / 'other.csv'}; other and CIFAR-10 are taken for one." in section
    [order] = pd.read_csv(tmp_path / "out" / "tables" / "orders.csv").to_dict("records")
    assert (order["cell"], order["norms"]) == ("vgg, CIFAR-10, 16.0, true, false", 6)
    signs = pd.read_csv(tmp_path / "out" / "tables" / "signs.csv").set_index(["measure", "outcome"])
    assert signs.loc[("Class Similarity", "Test Accuracy"), "verdict"] == "agrees"
    with pytest.raises(RunError, match=r"nowhere\.csv cannot be read"):
        report(tmp_path, made_up(), f"--compare={tmp_path / 'nowhere.csv'}")


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


ODD = [
    "no runs",
    "one run",
    "one norm",
    "all failed",
    "constant",
    "not numbers",
    "unknown names",
    "few columns",
    "negative",
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ODD)
def test_odd_tables_get_a_page_that_says_so_and_no_warning(tmp_path, capfd, name):
    made_up(20).to_csv(tmp_path / "other.csv", index=False)
    page = report(tmp_path, odd(name), f"--compare={tmp_path / 'other.csv'}")
    assert page.endswith("</html>\n")
    assert capfd.readouterr().err == ""
    words = {"no runs": "There are no runs yet", "all failed": "20 of 20 failed", "constant": "support no finding"}
    assert words.get(name, "<h2>Summary</h2>") in page
    if name in ("no runs", "one run", "all failed", "constant"):
        assert "Spearman&#x27;s ρ =" not in page


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


def test_a_thousand_runs_fit_into_five_megabytes(tmp_path):
    page = report(tmp_path, made_up(1000))
    assert len(page.encode()) < 5e6
    assert page.count("<tr>") > 1000


def test_a_norm_has_its_colour_in_every_picture(made):
    """Pictures have few colours, but those of the norms are exact."""
    from matplotlib import colors
    from PIL import Image

    wanted = {tuple(int(255 * part + 0.5) for part in colors.to_rgb(style.norm_colour(norm))) for norm in NORMS}
    for name in ("ranking", "measures_test_accuracy", "measures_gap"):
        with Image.open(made / "figures" / f"{name}.png") as picture:
            found = {pixel for _, pixel in picture.convert("RGB").getcolors(1 << 24)}
        assert wanted <= found, name


# Real runs


@pytest.fixture(scope="module")
def real(tmp_path_factory, small):
    """Six small runs of five settings, measured, and their report."""
    results = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.VGG_LAYERS, "cfg_10", NARROW)
        for flags in (
            ["--norm_type=BatchNorm"],
            ["--norm_type=BatchNorm", "--seed=1"],
            ["--norm_type=LayerNorm"],
            ["--norm_type=RMSNorm"],
            ["--norm_type=GroupNorm", "--p_grouping=8"],
            ["--norm_type=GroupNorm", "--p_grouping=0.5"],
        ):
            main.main([*small, "--epochs=2", f"--results_dir={results}", *flags])
        samples = [f"--results_dir={results}", "--samples=20"]
        assert run_hessian.main([*samples, "--lanczos_steps=4", "--num_probes=1", "--trace_probes=2"]) == 0
        assert run_class_similarity.main(samples) == 0
    assert run_report.main([f"--results_dir={results}", "--resamples=100"]) == 0
    return results


def test_runs_have_links_that_lead_to_files(real):
    page = (real / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'href="(?!data:)([^"]+)"', page)
    assert len(links) == 6 * 6
    assert all((real / link).is_file() for link in links)


def test_real_runs_are_looked_into(real):
    figures = {path.stem for path in (real / "figures").glob("*.png")}
    assert {"densities", "depth_first", "depth_last", "iterations", "ranking", "correlations"} <= figures
    assert {"groupings", "groupings_first", "groupings_last"} <= figures
    correlations = pd.read_csv(real / "tables" / "correlations.csv")
    assert {"stable_rank first", "grad_norm last", "class_similarity_pooled"} <= set(correlations["measure"])
    assert (correlations["n"] == 5).all()


def test_probe_measures_are_means_over_sites(real):

    report_ = build.Report(run_report.build_parser().parse_args([]), [real / "results.csv"], real)
    table, titles = report_.with_probes({}, report_.probes())
    row, run = report_.folders[0]
    probes = probe_files.load_probes_of_whole_batches(run)
    own = table[table["run"] == row["run"]].iloc[0]
    assert own["stable_rank last"] == pytest.approx(probes["stable_rank"][-1].double().mean().item(), rel=1e-5)
    assert own["std first"] == pytest.approx(probes["std"][0].double().mean().item(), rel=1e-5)
    assert titles["std first"] == "standard deviation, first iteration"


@pytest.mark.parametrize(
    ("lasting", "is_logarithmic", "scale"),
    [([1.0, 2.0, 4.0], True, "linear"), ([0.0, 1.0, 1000.0], True, "log"), ([-1.0, 5.0, 99.0], False, "linear")],
)
def test_runs_that_diverged_leave_the_frame(lasting, is_logarithmic, scale):
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    axis.plot([0, 50, 100], lasting)
    axis.plot([0, 1], [1.0, 1e20])
    network_figures._scale_and_frame(axis, is_logarithmic)
    low, high = axis.get_ylim()
    assert axis.get_yscale() == scale
    least = min(value for value in lasting if value > 0 or scale == "linear")
    assert low < least < max(lasting) < high < 2 * max(lasting)


def test_one_recorded_iteration_is_drawn():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    axis.plot([0], [3.0], marker=".")
    network_figures._scale_and_frame(axis, True)


def test_two_norms_support_a_finding_and_no_claim_of_four(tmp_path):
    table = made_up(40)
    table = table[table["Norm"].isin(["EvoNormBO", "Instance_Normalization"])].assign(**{"Class Similarity": np.nan})
    page = report(tmp_path, table.drop(columns=["Trace", "Max Eigen"]).assign(epochs=3))
    assert "EvoNormBO had the highest test accuracy of 2 norms" in page
    assert "cannot be said: no cell has four norms" in page
    assert "which all runs share: Dataset: CIFAR-10, Mom &amp; WD: on, SkipInit: off, epochs: 3." in page
    assert "class similarity; class similarity, pooled features;" in page


def test_a_norm_with_one_run_is_not_said_to_be_best(tmp_path):
    table = made_up(80).drop(columns=["Class Similarity", "Trace", "Max Eigen"]).assign(Model="VGG")
    table.loc[len(table)] = table.iloc[0].to_dict() | {"Norm": "RMSNorm", "Test Accuracy": 99.0}
    page = report(tmp_path, table)
    assert re.search(r"(EvoNormBO|BatchNorm) had the highest test accuracy of the 5 norms with several runs", page)


def test_intervals_from_few_runs_are_said_to_be_too_narrow(tmp_path):
    page = report(tmp_path, made_up(10).assign(Model="vgg", **{"Batch Size": 16}))
    assert re.search(r"\(vgg: \w+ 2(, \w+ 2){4}\)", page)
    assert "those of two runs only span both values" in page


@pytest.mark.parametrize("name", ["probes.json", "probes/epoch_0002.pt"])
def test_damaged_probes_are_said_and_left_out(real, tmp_path, capsys, name):
    """The dict is read where the summary is missing."""
    copy = shutil.copytree(real, tmp_path / "copy")
    damaged = next(copy.glob(f"*/{name}"))
    (copy / damaged.relative_to(copy).parts[0] / "probes.json").unlink()
    damaged.write_bytes(b"damaged")
    assert run_report.main([f"--results_dir={copy}", "--resamples=100"]) == 0
    assert "left out:" in capsys.readouterr().err


# In a browser


@pytest.fixture(scope="module")
def browser():
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver here; .ci/browser installs them")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def column(browser, place):
    script = f"return [...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[{place}].dataset.v)"
    return browser.execute_script(script)


def test_the_page_works_in_a_browser(browser, made):
    browser.get((made / "report.html").as_uri())
    assert browser.title == "Normalization: a report on 160 runs"
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 6
    assert min(widths) > 300
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    heads = browser.find_elements("css selector", "#runs th button")
    names = [head.get_attribute("textContent") for head in heads]
    place = names.index("test acc. (%)")
    for up in (True, False):
        browser.execute_script("arguments[0].click()", heads[place])
        values = [float(value) for value in column(browser, place) if value]
        assert values == sorted(values, reverse=not up)
        assert column(browser, place)[-2:] == ["", ""], "what is missing comes last"
    box = browser.find_element("id", "filter")
    box.send_keys("batchnorm vgg")
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#runs tbody tr')].filter(r => !r.hidden).map(r => r.textContent)"
    )
    assert len(shown) == 16 == int(browser.find_element("id", "shown").text)
    assert all("vgg" in text and "BatchNorm" in text for text in shown)
    errors = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert errors == []


def test_links_open_in_a_browser(browser, real):
    browser.get((real / "report.html").as_uri())
    link = browser.find_element("css selector", '#runs a[href$="curves.png"]')
    assert Path(link.get_attribute("href").removeprefix("file://")).is_file()
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_numbers_are_short_and_missing_ones_empty():
    assert [page.format_number(value) for value in (float("nan"), None, 3.0, 0.12345, 1e-7)] == [
        "",
        "",
        "3",
        "0.123",
        "1e-07",
    ]


def test_every_norm_and_some_to_come_have_a_colour_of_their_own():
    assert len(set(style.PALETTE)) == len(style.PALETTE) >= len(config.NORM_TYPES) + 5
