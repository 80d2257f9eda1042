"""The page as HTML, and in a real browser."""

from pathlib import Path

from normstudy.report import page


def test_numbers_are_short_and_missing_ones_empty():
    shown = {float("inf"): "inf", 3.0: "3", 0.12345: "0.123", 1e-7: "1e-07", True: "on"}
    assert [page.format_number(value) for value in shown] == list(shown.values())
    assert page.format_number(float("nan")) == page.format_number(None) == ""


def test_text_from_disk_is_escaped(made):
    text = (made / "report.html").read_text(encoding="utf-8")
    assert "<script>document" not in text
    assert "&lt;script&gt;document" in text


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
        assert column(browser, place)[-2:] == ["", ""], "missing values come last"
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
