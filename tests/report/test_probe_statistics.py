"""Probe statistics of real runs as measures of the report."""

import shutil

import pytest

import run_report
from normstudy.report import data, tables
from normstudy.storage import load_probes_of_whole_batches


def test_probe_measures_are_means_over_sites(real):
    found = data.look_into_folders(tables.read_tables([real / "results.csv"]), None)
    row, run = found.folders[0]
    probes = load_probes_of_whole_batches(run)
    assert probes is not None
    own = found.table[found.table["run"] == row["run"]].iloc[0]
    assert own["stable_rank last"] == pytest.approx(probes["stable_rank"][-1].double().mean().item(), rel=1e-5)
    assert own["std first"] == pytest.approx(probes["std"][0].double().mean().item(), rel=1e-5)
    assert found.titles["std first"] == "standard deviation, first iteration"


@pytest.mark.parametrize("name", ["probes.json", "probes/epoch_0002.pt"])
def test_damaged_probes_are_said_and_left_out(real, tmp_path, capsys, name):
    """Without probes.json, the probe dicts are read."""
    copy = shutil.copytree(real, tmp_path / "copy")
    damaged = next(copy.glob(f"*/{name}"))
    (copy / damaged.relative_to(copy).parts[0] / "probes.json").unlink()
    damaged.write_bytes(b"damaged")
    assert run_report.main([f"--results_dir={copy}", "--resamples=100"]) == 0
    assert "left out:" in capsys.readouterr().err
