"""The page as HTML, and in a real browser."""

from pathlib import Path

import pandas as pd
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from normstudy.report import page


def test_numbers_are_short_and_missing_ones_empty():
    shown = {float("inf"): "inf", 3.0: "3", -3.0: "−3", 0.12345: "0.123", -0.5: "−0.5", 1e-7: "1e-07", True: "on"}
    assert [page.format_number(value) for value in shown] == list(shown.values())
    assert page.format_number(float("nan")) == page.format_number(None) == ""


def test_text_from_disk_is_escaped(made):
    text = (made / "report.html").read_text(encoding="utf-8")
    assert "<script>document" not in text
    assert "&lt;script&gt;document" in text


def column(browser, place):
    script = f"return [...document.querySelectorAll('#runs-table tbody tr')].map(r => r.cells[{place}].dataset.v)"
    return browser.execute_script(script)


def test_the_page_works_in_a_browser(browser, made):
    browser.get((made / "report.html").as_uri())
    assert browser.title == "Normalization: a report on 160 runs"
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 6
    assert min(widths) > 300
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    heads = browser.find_elements("css selector", "#runs-table th button")
    names = [head.get_attribute("textContent") for head in heads]
    place = names.index("test acc. (%)")
    for up in (True, False):
        browser.execute_script("arguments[0].click()", heads[place])
        values = [float(value) for value in column(browser, place) if value]
        assert values == sorted(values, reverse=not up)
        assert column(browser, place)[-2:] == ["", ""], "missing values come last"
    box = browser.find_element("id", "filter")
    box.send_keys("batchnorm vgg")
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#runs-table tbody tr')].filter(r => !r.hidden).map(r => r.textContent)"
    )
    assert len(shown) == 16 == int(browser.find_element("id", "shown").text)
    assert all("vgg" in text and "BatchNorm" in text for text in shown)
    errors = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert errors == []


def test_links_open_in_a_browser(browser, real):
    browser.get((real / "report.html").as_uri())
    link = browser.find_element("css selector", '#runs-table a[href$="curves.png"]')
    assert Path(link.get_attribute("href").removeprefix("file://")).is_file()
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def explorer(browser, name):
    return browser.find_element("id", f"explorer-{name}")


def points(browser):
    """The marks of the explorer's points, once it has drawn."""
    WebDriverWait(browser, 10).until(lambda it: it.find_elements("css selector", "#explorer-plot svg"))
    return browser.find_elements("css selector", "#explorer-plot .mark-symbol.role-mark path")


def test_every_control_of_the_explorer_changes_the_plot(browser, made):
    browser.get((made / "report.html").as_uri())
    assert len(points(browser)) == 158  # of 160 runs, two failed
    assert len(browser.find_elements("css selector", "#explorer-plot .mark-group.role-scope.cell > g")) == 2  # networks
    Select(explorer(browser, "facet")).select_by_visible_text("none")
    Select(explorer(browser, "x")).select_by_visible_text("Hessian trace, unscaled")
    Select(explorer(browser, "y")).select_by_visible_text("gap (train − test accuracy, points)")
    Select(explorer(browser, "colour")).select_by_visible_text("Model")
    explorer(browser, "logx").click()
    explorer(browser, "filter").send_keys("evonormbo vgg")
    WebDriverWait(browser, 10).until(lambda it: len(points(it)) == 16)
    assert explorer(browser, "count").text == "16 of 158 runs"
    titles = [text.text for text in browser.find_elements("css selector", "#explorer-plot .role-axis-title text")]
    assert titles == ["Hessian trace, unscaled", "gap (train − test accuracy, points)"]
    errors = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert errors == []


def test_a_finding_leads_to_its_runs_in_the_table_and_in_the_explorer(browser, made):
    browser.get((made / "report.html").as_uri())
    points(browser)
    browser.find_element("css selector", 'a[data-filter="finding-1"]').click()
    behind = pd.read_csv(made / "tables" / "runs_of_finding_1.csv")
    assert 100 < len(behind) < 158
    assert browser.find_element("id", "shown").text == str(len(behind))
    assert explorer(browser, "count").text == f"{len(behind)} of 158 runs"


def test_words_of_a_filter_are_whole_numbers_and_beginnings_of_words(browser, made):
    browser.get((made / "report.html").as_uri())
    found = {
        (text, words): browser.execute_script("return hasWords(arguments[0], arguments[1])", text, words.split())
        for text, words in (
            ("vgg cifar-10 256", "cifar-10"),
            ("vgg cifar-10 256", "VG cif 256".lower()),
            ("vgg cifar-100 64.16", "cifar-10"),
            ("vgg cifar-100 64.16", "16"),
            ("vgg cifar-100 64.16", "64"),
            ("vgg batchnorm", "norm"),
            ("groupnorm p=16 (a+b", "p=16 (a+"),
        )
    }
    assert list(found.values()) == [True, True, False, False, False, False, True]


def test_a_logarithmic_axis_leaves_out_what_is_not_positive_and_says_so(browser, made):
    browser.get((made / "report.html").as_uri())
    points(browser)
    table = pd.read_csv(made.parent / "table.csv")
    is_negative = (table["Class Similarity"] <= 0) & table["Test Accuracy"].notna()
    explorer(browser, "logx").click()
    said = f"{158 - is_negative.sum()} of 158 runs; {is_negative.sum()} with x ≤ 0 left out"
    WebDriverWait(browser, 10).until(lambda it: explorer(it, "count").text == said)


def test_the_page_is_used_with_the_keyboard_alone(browser, made):
    """Tab leads from the links of the sections to the controls; the filter takes the words that are typed."""
    browser.get((made / "report.html").as_uri())
    points(browser)
    reached = []
    for _ in range(400):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.execute_script("return document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] == "filter":
            break
    assert reached[0] == "A"
    assert {"explorer-x", "explorer-y", "explorer-colour", "explorer-facet", "explorer-logx", "explorer-filter"} <= {
        *reached
    }
    assert reached[-1] == "filter"
    ActionChains(browser).send_keys("evonormbo").perform()
    assert browser.find_element("id", "shown").text == "32"


def test_a_click_in_the_explorer_opens_a_file_of_the_run(browser, real):
    browser.get((real / "report.html").as_uri())
    points(browser)
    marks = points(browser)
    assert len(marks) == 6
    first = browser.current_window_handle
    marks[0].click()
    WebDriverWait(browser, 10).until(lambda it: len(it.window_handles) == 2)
    [other] = set(browser.window_handles) - {first}
    browser.switch_to.window(other)
    assert browser.current_url.endswith("/curves.png")
    assert Path(browser.current_url.removeprefix("file://")).is_file()
    browser.close()
    browser.switch_to.window(first)


def test_the_page_can_be_read_without_javascript(made):
    text = (made / "report.html").read_text(encoding="utf-8").partition("<script")[0]
    for words in ("The primary analysis", "Every norm in every cell", "needs JavaScript"):
        assert words in text


def test_the_page_follows_a_dark_system_and_is_small(browser, made):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    try:
        browser.get((made / "report.html").as_uri())
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(24, 24, 24)"
        points(browser)
        for picture in ("figure img", "#explorer-plot"):  # white, so that the norms keep their colours
            style = f"return getComputedStyle(document.querySelector('{picture}')).backgroundColor"
            assert browser.execute_script(style) == "rgb(255, 255, 255)", picture
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (made / "report.html").stat().st_size < 8e6
