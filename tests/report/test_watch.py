"""A watched report, which follows real runs: one in training that is killed, one that diverges, and one that ends."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import NARROW, wait_until
from report_helpers import section_of, table_rows
from selenium.webdriver.support.wait import WebDriverWait

import config
import main
import run_report
from normstudy.cli import UsageError, format_duration
from normstudy.report import ReportOptions, build, progress, progress_figures, run_states, watch
from normstudy.storage import RunDirectory, write_json

ROOT = Path(__file__).parents[2]
TINY = ["--dataset=Synthetic", "--image_size=8", "--train_samples=50", "--test_samples=20", "--batch_size=16"]
TINY += ["--device=cpu", "--probe_layers=False"]
CHILD = f"import sys, config; config.VGG_LAYERS['cfg_10'] = {NARROW}; import main; main.main(sys.argv[1:])"


def train(results, *flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.VGG_LAYERS, "cfg_10", NARROW)
        return RunDirectory(main.main([*TINY, f"--results_dir={results}", *flags]))


def options_of(results, **others):
    return ReportOptions([results / "results.csv"], results, resamples=100, shows_progress=True, **others)


@contextlib.contextmanager
def long_run(results):
    """A process that trains a run without end, and a function that lets it train one epoch; else it is suspended."""
    flags = [*TINY, f"--results_dir={results}", "--norm_type=GroupNorm", "--p_grouping=2", "--epochs=100000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", CHILD, *flags], stdout=subprocess.DEVNULL, env=environment)

    def metrics():
        return run_states.signature(next(results.glob("vgg_GroupNorm_*/metrics.csv"), Path("none")))

    def train_epoch():
        before = metrics()
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: metrics() != before)
        process.send_signal(signal.SIGSTOP)

    try:
        train_epoch()
        yield process, train_epoch
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """The pages and the numbers of computed reports, by event, while runs train, diverge and are killed."""
    results = tmp_path_factory.mktemp("watched")
    pages, computed = {}, []
    compute = build.build_report

    def counted(options):
        computed.append(options)
        return compute(options)

    def note(event):
        pages[event] = ((results / "report.html").read_text(encoding="utf-8"), len(computed))

    def events(process, train_epoch):
        note("no run has ended")
        train_epoch()
        yield
        note("an epoch has ended")
        train(results, "--norm_type=BatchNorm", "--epochs=2")
        train(results, "--norm_type=Plain", "--epochs=2", "--init_lr=1e30")
        yield
        note("two runs have ended")
        process.kill()
        process.wait()
        yield
        note("a run was killed")
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, long_run(results) as (process, train_epoch):
        patch.setattr(watch, "build_report", counted)
        patch.setattr(watch, "REFRESH_SECONDS", 0.0)
        patch.setattr(watch, "REST", 0)
        steps = events(process, train_epoch)
        with pytest.raises(KeyboardInterrupt) as caught:
            watch.watch_report(options_of(results), wait=lambda seconds: next(steps))
    note("the end")
    return pages, str(caught.value), results


def section(page):
    return section_of(page, "Runs in progress")


def epoch_in(page):
    [row] = [row for row in table_rows(section(page)) if "GroupNorm" in row[0]]
    return int(row[1].removesuffix(" of 100000"))


def test_a_run_in_training_is_listed_with_its_curve(story):
    page, _ = story[0]["no run has ended"]
    assert "1 in training, 0 ended" in section(page)
    [row] = table_rows(section(page))
    assert row[0].startswith("vgg_GroupNorm_Synthetic_p2_")
    assert all(float(cell) >= 0 for cell in row[2:4])  # loss and accuracy
    assert re.fullmatch(r"[\d.]+ s", row[4])
    assert re.fullmatch(r"[\d.]+ (min|h|days)", row[5])
    assert section(page).count("<img") == 1


def test_the_page_follows_a_run_without_computing_statistics_again(story):
    pages, *_ = story
    (before, computed), (after, computed_later) = pages["no run has ended"], pages["an epoch has ended"]
    assert epoch_in(after) > epoch_in(before)
    assert computed == computed_later == 1


def test_the_report_is_computed_again_when_runs_have_ended(story):
    page, computed = story[0]["two runs have ended"]
    assert "a report on 2 runs" in page
    assert "finished runs of the same network" in section(page)
    assert computed == 2


def test_the_section_says_why_runs_failed(story):
    page, _ = story[0]["two runs have ended"]
    assert re.search(
        r"<li>1 run diverged: the training loss or a gradient was not finite in epoch 1 \(vgg_Plain_\S+\)\.</li>",
        section(page),
    )


def test_a_killed_run_is_not_in_training(story):
    page, computed = story[0]["a run was killed"]
    assert "0 in training, 2 ended" in section(page)
    assert re.search(r"1 run stopped without an ending: .* \(vgg_GroupNorm_\S+\)", section(page))
    assert computed == 2


def test_the_last_page_is_complete_and_does_not_reload(story):
    pages, message, results = story
    assert message == f"{results / 'report.html'} is complete"
    assert "location.reload" in pages["a run was killed"][0]
    assert "location.reload" not in pages["the end"][0]
    assert pages["the end"][0].endswith("</html>\n")


def test_a_report_without_watching_names_the_unfinished_runs(tmp_path):
    write_json(tmp_path / "stopped" / "config.json", {"arch": "vgg"})
    assert run_report.main([f"--results_dir={tmp_path}"]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No process works on 1 unfinished run (stopped)." in section(page)
    assert "location.reload" not in page


def test_ctrl_c_ends_the_command_with_130(tmp_path):
    command = [sys.executable, str(ROOT / "run_report.py"), "--watch", f"--results_dir={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until((tmp_path / "report.html").exists)
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.startswith(f"watching {tmp_path} until Ctrl-C; open {tmp_path / 'report.html'}")
    assert complaint == f"run_report.py: interrupted; {tmp_path / 'report.html'} is complete\n"
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_later_errors_are_printed_once_and_the_report_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(watch, "REST", 0)
    watched = watch.Watch(options_of(tmp_path))
    watched.page.mkdir()
    capsys.readouterr()
    for _ in range(3):
        with watched.later_errors():
            watched.look()
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "report.html" in said.err
    watched.page.rmdir()
    with watched.later_errors():
        watched.look()
    assert watched.page.is_file()


def test_complaints_about_files_are_printed_once(tmp_path, capsys):
    run = train(tmp_path, "--norm_type=BatchNorm", "--epochs=1")
    run.measurement("hessian").write_text("{")
    watched = watch.Watch(options_of(tmp_path))
    for _ in range(2):
        watched.rebuild(run_states.read_states(tmp_path, watched.files))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) == 2, "one for the table and one for the picture"
    assert all("hessian.json" in line for line in lines)


def test_a_table_with_the_same_rows_is_not_reported_again(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "REST", 0)
    watched = watch.Watch(options_of(tmp_path))
    watched.look()
    built = watched.built
    os.utime(watched.table, (0, 0))  # as if a run had added a row that the table already has
    watched.look()
    assert watched.built is built
    assert watched.table.stat().st_mtime > 0, "the table was collected again"


@pytest.mark.parametrize(("flag", "said"), [("--collect", "leave out --watch"), ("--table=a.csv", "leave out --table")])
def test_watching_needs_the_folders_of_the_runs(tmp_path, flag, said):
    with pytest.raises(UsageError, match=said):
        run_report.main([f"--results_dir={tmp_path}", "--watch", flag])


# The section


def states_of(number, folder, **settings):
    about = {"arch": "vgg", "norm_type": "GroupNorm", "p_grouping": 8.0, "dataset": "Synthetic", "seed": 0, "epochs": 9}
    epochs = [dict.fromkeys(run_states.SHOWN, float(epoch)) for epoch in (1, 2)]
    runs = [
        run_states.TrainingRun(RunDirectory(folder / f"run_{place}"), about | settings, epochs, 0.0, 0.0)
        for place in range(number)
    ]
    return run_states.RunStates(100.0, training=runs)


def panels_of(drawing):
    return drawing.draw().axes


@pytest.mark.parametrize("number", [1, 5, 12, 15])
def test_each_run_in_training_has_a_panel_up_to_twelve(tmp_path, number):
    drawing = progress_figures.draw_progress(states_of(number, tmp_path), tmp_path, run_states.FileCache())
    panels = [panel for panel in panels_of(drawing) if panel.axison]
    assert len(panels) == min(number, 12)
    assert ("3 more are not shown" in drawing.caption) == (number == 15)
    assert panels[0].get_ylabel() == "test accuracy (%)"
    assert panels[-1].get_xlabel() == "epoch"


def test_the_time_of_a_run_that_stops_at_a_loss_is_a_maximum(tmp_path):
    for settings, shown in (({}, "50 s"), ({"stop_at_loss": 0.1}, "at most 50 s")):
        states = states_of(1, tmp_path, **settings)
        epochs = [row | {"epoch": epoch, "seconds": 10.0} for epoch, row in enumerate(states.training[0].epochs, 2)]
        run = states.training[0]._replace(epochs=epochs)
        [row] = table_rows(progress._training_table([run], 10.0, tmp_path))
        assert row[-1] == shown


def test_runs_without_test_accuracy_or_settings_have_panels(tmp_path):
    states = states_of(2, tmp_path)
    epochs = [row | {"test_accuracy": float("nan")} for row in states.training[0].epochs]
    states.training[0] = states.training[0]._replace(epochs=epochs)
    states.training[1] = states.training[1]._replace(epochs=[], settings={})
    drawing = progress_figures.draw_progress(states, tmp_path, run_states.FileCache())
    first, second = panels_of(drawing)
    assert first.get_ylabel() == "train loss (nats per image)"
    assert [text.get_text() for text in second.texts] == ["no value yet"]


def test_a_late_first_evaluation_can_be_seen(tmp_path):
    """A single point has no line, so it needs a marker, however many epochs there are."""
    states = states_of(1, tmp_path)
    rows = [dict.fromkeys(run_states.SHOWN, float(epoch)) | {"test_accuracy": float("nan")} for epoch in range(1, 41)]
    rows[-1]["test_accuracy"] = 0.5
    states.training[0] = states.training[0]._replace(epochs=rows)
    [panel] = panels_of(progress_figures.draw_progress(states, tmp_path, run_states.FileCache()))
    [line] = [line for line in panel.lines if len(line.get_xdata())]
    assert (list(line.get_xdata()), line.get_marker()) == ([40], "o")


def test_equal_reasons_are_one_sentence_and_all_runs_are_in_the_table(tmp_path):
    failures = [
        run_states.Failure(RunDirectory(tmp_path / f"run<{place}>"), "failed", "too little memory")
        for place in range(5)
    ]
    states = run_states.RunStates(0.0, failures=failures, unfinished=[RunDirectory(tmp_path / "stopped")])
    heading, content = progress.progress_section(states, [], tmp_path)
    assert heading == "Runs in progress"
    assert "<li>5 runs failed: too little memory (run&lt;0&gt;, run&lt;1&gt;, run&lt;2&gt; and 2 more).</li>" in content
    assert "<li>No process works on 1 unfinished run (stopped)." in content
    assert [row[0] for row in table_rows(content)] == [*(f"run<{place}>" for place in range(5)), "stopped"]


def test_a_finished_folder_has_the_section_only_if_runs_failed(tmp_path):
    write_json(tmp_path / "a" / "summary.json", {"status": "done"})
    states = run_states.read_states(tmp_path, run_states.FileCache())
    assert progress.progress_section(states, [], tmp_path)[1] == ""
    write_json(tmp_path / "b" / "summary.json", {"status": "diverged", "epochs_done": 3})
    states = run_states.read_states(tmp_path, run_states.FileCache())
    heading, content = progress.progress_section(states, [], tmp_path)
    assert heading == "Failed runs"
    assert "1 run diverged: the training loss or a gradient was not finite in epoch 4 (b)." in content
    assert "State at" not in content, "the page of a finished study does not depend on the time"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5400, "1.5 h"),
        (48 * 3600, "2.0 days"),
    ],
)
def test_durations_have_a_unit(seconds, words):
    assert format_duration(seconds) == words


# In a browser


@pytest.fixture
def opened(story, browser, tmp_path):
    """A watched page in the browser, which reloads itself after one second instead of sixty."""
    page, _ = story[0]["a run was killed"]
    path = tmp_path / "report.html"
    path.write_text(page.replace('data-seconds="60"', 'data-seconds="1"'), encoding="utf-8")
    browser.get(path.as_uri())
    browser.execute_script("window.isFirst = true")
    return path


def has_reloaded(browser):
    return not browser.execute_script("return window.isFirst === true")


def test_a_page_that_is_not_used_reloads_and_stays_where_it_is(opened, browser):
    browser.execute_script(
        "document.querySelector('#runs-in-progress details').open = true;"
        "document.getElementById('runs').scrollIntoView(); scrollBy(0, 5)"
    )
    top = "return document.getElementById('runs').getBoundingClientRect().top"
    before = browser.execute_script(top)
    newer = opened.read_text(encoding="utf-8").replace("0 in training", "0 in training<br><br><br>, really")
    opened.write_text(newer, encoding="utf-8")
    WebDriverWait(browser, 20).until(has_reloaded)
    assert "really" in browser.find_element("id", "runs-in-progress").text
    assert browser.execute_script("return document.querySelector('#runs-in-progress details').open")
    assert browser.execute_script(top) == pytest.approx(before, abs=2)
    errors = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert errors == []


def test_a_page_with_a_filter_does_not_reload(opened, browser):
    browser.find_element("id", "filter").send_keys("batchnorm")
    note = browser.find_element("id", "watched")
    WebDriverWait(browser, 10).until(lambda it: "does not reload itself while a filter" in note.text)
    time.sleep(2.5)
    assert not has_reloaded(browser)
    browser.find_element("id", "filter").clear()
    WebDriverWait(browser, 20).until(has_reloaded)
