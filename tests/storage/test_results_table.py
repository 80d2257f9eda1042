"""results.csv: rows that runs and measurements add one by one equal those of a table rebuilt from the folders."""

import csv
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import main
import run_class_similarity
import run_report
from config import PROBE_FLAGS, Config
from normstudy.storage import files, results_columns, results_table, run_directory, run_settings

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("narrow")


def rows(results):
    with open(results / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_rebuilt_is_the_same(results):
    added = (results / "results.csv").read_bytes()
    assert run_report.main(["--collect", f"--results_dir={results}"]) == 0
    assert (results / "results.csv").read_bytes() == added


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, small):
    """A folder with two runs, one of which diverged."""
    results = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        from helpers import NARROW

        patch.setitem(__import__("config").VGG_LAYERS, "cfg_10", NARROW)

        for flags in (["--seed=1"], ["--init_lr=1e30", "--norm_type=Plain"]):
            main.main([*small, "--epochs=1", f"--results_dir={results}", *flags])
    return results


@pytest.fixture
def results(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "results")


def test_added_rows_are_those_of_a_rebuilt_table(results, train):
    assert_rebuilt_is_the_same(results)
    run = train(results, "--seed=0", "--epochs=1")
    assert {row["status"] for row in rows(results)} == {"done", "diverged"}
    assert len(rows(results)) == 3
    assert_rebuilt_is_the_same(results)
    assert run_class_similarity.main([str(run.path), "--samples=20"]) == 0
    assert [row["class_similarity_samples"] for row in rows(results) if row["run"] == run.path.name] == ["20"]
    assert_rebuilt_is_the_same(results)


def test_rows_of_runs_that_are_elsewhere_stay_until_the_table_is_rebuilt(results, train, capsys):
    """Someone passes on one run's folder with the table of all runs."""
    shutil.rmtree(next(results.glob("vgg_Plain*")))
    run = train(results, "--seed=0", "--epochs=1")
    assert run_class_similarity.main([str(run.path), "--samples=20"]) == 0
    before = rows(results)
    assert sorted(row["seed"] for row in before) == ["0", "0", "1"]
    results_table.collect_table(results)
    assert sorted(row["seed"] for row in rows(results)) == ["0", "1"]
    assert "it was renamed to results.old.csv" in capsys.readouterr().err
    with open(results / "results.old.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == before
    assert_rebuilt_is_the_same(results)
    assert [path.name for path in results.glob("*.csv")].count("results.old-2.csv") == 0


def test_a_table_of_someone_else_is_kept(results, capsys):
    foreign = b"Model,Norm\nvgg,Plain\n"
    for name in ("results.old.csv", "results.old-2.csv"):
        (results / "results.csv").write_bytes(foreign)
        results_table.update_table([run_directory.RunDirectory(next(results.glob("vgg_Plain*")))])
        assert (results / name).read_bytes() == foreign
        assert name in capsys.readouterr().err
    assert len(rows(results)) == 2


def as_german_excel(path):
    """Save a table with semicolons, decimal commas, two digits, and WAHR and FALSCH; return the content of the file."""
    lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    words = {"True": "WAHR", "False": "FALSCH"}
    for row in lines[1:]:
        for place, cell in enumerate(row):
            row[place] = words.get(cell, cell)
            if re.fullmatch(r"-?\d+\.\d+", cell):
                row[place] = f"{float(cell):.2f}".replace(".", ",")
    content = "".join(f"{';'.join(row)}\r\n" for row in lines).encode("cp1252")
    path.write_bytes(content)
    return content


def test_a_table_that_a_spreadsheet_saved_is_kept_and_its_rows_are_those_of_the_runs(results, tmp_path, capsys):
    """The row of a run whose folder is elsewhere has only the digits that the spreadsheet program kept."""
    own = results_table.collect_table(results).read_bytes()
    saved = as_german_excel(results / "results.csv")
    results_table.update_table([run_directory.RunDirectory(next(results.glob("vgg_Plain*")))])
    assert (results / "results.csv").read_bytes() == own
    assert (results / "results.old.csv").read_bytes() == saved
    assert "results.csv was saved by another program: it was renamed to results.old.csv" in capsys.readouterr().err
    as_german_excel(results / "results.csv")
    shutil.move(next(results.glob("vgg_BatchNorm*")), tmp_path / "elsewhere")
    results_table.update_table([run_directory.RunDirectory(next(results.glob("vgg_Plain*")))])
    found = {row["Norm"]: row for row in rows(results)}
    assert found.keys() == {"BatchNorm", "Plain"}
    assert (found["BatchNorm"]["Success"], found["BatchNorm"]["momentum"]) == ("True", "0.9")
    assert len(found["BatchNorm"]["seconds"].partition(".")[2]) <= 2
    capsys.readouterr()
    results_table.update_table([run_directory.RunDirectory(next(results.glob("vgg_Plain*")))])
    assert capsys.readouterr().err == ""  # the new table has the program's own form


@pytest.mark.parametrize("rebuild", [results_table.collect_table, None], ids=["rebuilt", "added to"])
def test_a_column_of_notes_is_kept(results, capsys, rebuild):
    lines = (results / "results.csv").read_text(encoding="utf-8").splitlines()
    noted = "\n".join([f"{lines[0]},notes", *(f"{line},look again" for line in lines[1:])]) + "\n"
    (results / "results.csv").write_text(noted, encoding="utf-8")
    if rebuild:
        rebuild(results)
    else:
        results_table.update_table([run_directory.RunDirectory(next(results.glob("vgg_Plain*")))])
    assert (results / "results.old.csv").read_text(encoding="utf-8") == noted
    assert "notes" not in rows(results)[0]
    assert "was saved by another program" in capsys.readouterr().err


def test_columns_are_of_the_usual_measurements(results):
    run = run_directory.RunDirectory(next(results.glob("vgg_BatchNorm*")))
    assert run_class_similarity.main([str(run.path), "--samples=20", "--split=test"]) == 0
    [row] = [row for row in rows(results) if row["run"] == run.path.name]
    assert row["Class Similarity"] == ""
    assert run_class_similarity.main([str(run.path), "--samples=20", "--overwrite=True"]) == 0
    [row] = [row for row in rows(results) if row["run"] == run.path.name]
    assert float(row["Class Similarity"]) == files.read_json(run.path / "class_similarity.json")["class_similarity"]


def test_a_table_that_cannot_be_written_costs_no_measurement(results, capsys):
    run = run_directory.RunDirectory(next(results.glob("vgg_BatchNorm*")))
    (results / results_table.LOCK).unlink(missing_ok=True)
    (results / results_table.LOCK).mkdir()
    assert run_class_similarity.main([str(run.path), "--samples=20"]) == 0
    found = capsys.readouterr()
    assert "the measurements could not be added to results.csv" in found.err
    assert "checkpoints measured: 1" in found.out


def test_runs_that_differ_in_a_setting_alone_are_no_copies(results, capsys):
    """Both runs diverged at the same step and in the same second."""
    run = next(results.glob("vgg_Plain*"))
    shutil.copytree(run, results / "another")
    path = results / "another" / "config.json"
    files.write_json(path, files.read_json(path) | {"weight_decay": 0.5})
    summary = results / "another" / "summary.json"
    identity = run_directory.identity_hash(run_settings.stored_config(run_directory.RunDirectory(results / "another")))
    files.write_json(summary, files.read_json(summary) | {"identity": identity})
    assert run_report.main([f"--results_dir={results}", "--resamples=100"]) == 0
    assert capsys.readouterr().err == ""
    assert "a report on 3 runs" in (results / "report.html").read_text(encoding="utf-8")


def test_a_copied_run_is_reported_once(results, capsys):
    run = next(results.glob("vgg_BatchNorm*"))
    shutil.copytree(run, results / "a copy")
    assert run_class_similarity.main([str(run), "--samples=20"]) == 0
    assert run_report.main([f"--results_dir={results}", "--resamples=100"]) == 0
    assert "left out: a copy in" in capsys.readouterr().err
    assert "<h1>Normalization: a report on 2 runs</h1>" in (results / "report.html").read_text(encoding="utf-8")


def test_a_run_that_is_started_over_has_no_row_until_it_ends(results, train, monkeypatch):
    seen = []

    def stop(training):
        seen.append(rows(results))
        raise KeyboardInterrupt

    monkeypatch.setattr("normstudy.training.loop.Training.finish", stop)
    with pytest.raises(KeyboardInterrupt):
        train(results, "--seed=1", "--epochs=1", "--overwrite=True")
    assert [row["Norm"] for row in seen[0]] == ["Plain"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("Model,Norm\nvgg,Plain\n"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b"\xff\x00" * 50),
        lambda path: path.write_text(""),
    ],
    ids=["missing", "foreign", "cut", "bytes", "empty"],
)
def test_a_table_that_is_not_whole_is_rebuilt(results, damage):
    expected = (results / "results.csv").read_bytes()
    damage(results / "results.csv")
    results_table.update_table([run_directory.RunDirectory(next(results.glob("vgg_Plain*")))])
    assert (results / "results.csv").read_bytes() == expected


def test_a_damaged_run_is_said_and_has_no_row(results, capsys):
    path = next(results.glob("vgg_Plain*/summary.json"))
    path.write_text(path.read_text().replace("diverged", "done"))
    results_table.collect_table(results)
    assert [row["seed"] for row in rows(results)] == ["1"]
    assert "does not match its checksum" in capsys.readouterr().err


def test_cells_are_what_the_files_say(results):
    [row] = [row for row in rows(results) if row["status"] == "done"]
    summary = files.read_json(results / row["run"] / "summary.json")
    assert float(row["Test Accuracy"]) == pytest.approx(100 * summary["test_accuracy"])
    assert float(row["Gen. Ratio"]) == summary["generalization_ratio"]
    assert row["Trace"] == row["validation_loss"] == ""
    assert (row["Success"], row["Mom & WD"], row["train_samples"]) == ("True", "True", "50")


def test_the_columns_are_explained_beside_the_table(results):
    assert (results / "README.md").read_text(encoding="utf-8") == results_columns.explanation()
    assert (ROOT / "results" / "README.md").read_text(encoding="utf-8") == results_columns.explanation()
    assert all(f"\n| {name} | " in results_columns.explanation() for name in rows(results)[0])
    settings = {option.name for option in dataclasses.fields(Config) if not option.metadata["runtime"]}
    others = {"arch", "norm_type", "dataset", "batch_size", "p_grouping", "skipinit"}  # under the original's names
    others |= {"train_samples", "test_samples", "val_fraction", *PROBE_FLAGS}
    assert {*results_columns.SETTING_COLUMNS} == settings - others


def test_a_readme_of_someone_else_is_left_alone(results):
    (results / "README.md").write_text("# My thesis\n")
    results_table.collect_table(results)
    assert (results / "README.md").read_text() == "# My thesis\n"


def test_a_run_in_the_working_directory_gets_its_row(results, monkeypatch):
    folder = next(results.glob("vgg_Plain*"))
    expected = (results / "results.csv").read_bytes()
    (results / "results.csv").unlink()
    monkeypatch.chdir(folder)
    results_table.update_table([run_directory.RunDirectory(".")])
    assert (results / "results.csv").read_bytes() == expected


def test_processes_that_add_rows_at_once_lose_none(results):
    """Eight processes remove and add the rows of two runs."""
    names = [str(path.parent) for path in results.glob("*/summary.json")]
    expected = (results / "results.csv").read_bytes()
    program = (
        "import sys; from normstudy.storage import RunDirectory, update_table\n"
        "for _ in range(20): update_table([RunDirectory(sys.argv[1])])"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, names[index % 2]], cwd=ROOT, env=os.environ)
        for index in range(8)
    ]
    assert [process.wait() for process in processes] == [0] * 8
    assert (results / "results.csv").read_bytes() == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--table=a.csv"], "--table"), (["--results_dir=nowhere"], "nowhere")],
    ids=["table", "folder"],
)
def test_a_wrong_command_is_one_line(flags, words):
    done = subprocess.run([sys.executable, ROOT / "run_report.py", "--collect", *flags], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
