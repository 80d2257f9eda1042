"""Fixtures shared by the report tests: two reports and a browser."""

import shutil

import numpy as np
import pytest
from helpers import NARROW
from report_helpers import made_up, report

import config
import main
import run_class_similarity
import run_hessian
import run_report
from normstudy.report import correlation


@pytest.fixture(scope="session", autouse=True)
def few_permutations():
    """Fewer permutations in reports; what they compute has its own tests, with all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correlation, "PERMUTATIONS", 999)
        patch.setattr(correlation, "FEW_PERMUTATIONS", 99)
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder of the report on a made-up table that has text to escape and two failed runs."""
    folder = tmp_path_factory.mktemp("made")
    table = made_up()
    table.loc[0, "Dataset"] = '<script>document.title="broken"</script>'
    table.loc[[3, 8], ["Success", "Test Accuracy"]] = False, np.nan
    report(folder, table)
    return folder / "out"


@pytest.fixture(scope="session")
def real(tmp_path_factory, small):
    """The folder of six small, measured runs of five settings, with their report."""
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


@pytest.fixture(scope="session")
def browser():
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("chromium or chromedriver is not installed; .ci/browser installs both")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()
