"""The frame and the scale of panels in which some lines end early."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from normstudy.report import network_figures
from normstudy.report.probe_statistics import ProbeStatistics, read_probe_statistics
from normstudy.storage import RunDirectory


@pytest.mark.parametrize(
    ("lasting", "is_logarithmic", "scale"),
    [([1.0, 2.0, 4.0], True, "linear"), ([0.0, 1.0, 1000.0], True, "log"), ([-1.0, 5.0, 99.0], False, "linear")],
)
def test_runs_that_diverged_leave_the_frame(lasting, is_logarithmic, scale):
    panel = Figure().subplots()
    framed = panel.plot([0, 50, 100], lasting)
    panel.plot([0, 1], [1.0, 1e20])
    network_figures._scale_and_frame(panel, framed, is_logarithmic)
    low, high = panel.get_ylim()
    assert panel.get_yscale() == scale
    least = min(value for value in lasting if value > 0 or scale == "linear")
    assert low < least < max(lasting) < high < 2 * max(lasting)


def test_one_recorded_iteration_is_drawn():
    panel = Figure().subplots()
    network_figures._scale_and_frame(panel, panel.plot([0], [3.0], marker="."), True)


def test_a_norm_that_ends_early_without_diverging_stays_in_the_frame():
    def run(norm, last, level, has_failed=False):
        values = {"std": {"mean": np.linspace(level, level + 1, last)}}
        row = {"Model": "vgg", "Norm": norm, "has_failed": has_failed}
        return row, ProbeStatistics({}, np.arange(last), values)

    runs = [run("BatchNorm", 100, 1.0), run("EvoNormBO", 20, 9.0), run("Plain", 5, 1e9, has_failed=True)]
    figure = network_figures.draw_statistics(runs, "mean", ("std",))
    assert figure is not None
    low, high = figure.axes[0].get_ylim()
    assert low < 1
    assert 10 < high < 12


@pytest.mark.parametrize(("largest", "unit"), [(40.0, "asinh λ"), (0.5, "asinh(λ/0.01)")])
def test_a_spectrum_has_a_scale_that_suits_its_eigenvalues(monkeypatch, largest, unit):
    """Element-scaled eigenvalues are all below 1, where a scale of 1 would show one Gaussian."""
    probe = {"nodes": [-0.01 * largest, 0.0, 0.5 * largest, largest], "weights": [0.2, 0.7, 0.05, 0.05]}
    content = {"probes": [probe], "min_eigen": -0.01 * largest, "max_eigen": largest, "dimension": 1000}
    sharper = content | {"probes": [probe | {"nodes": [0.0, 0.0, 1.0, 4e3]}], "max_eigen": 4e3}
    found = {("vgg", "BatchNorm"): content, ("resnet-56", "BatchNorm"): sharper}
    monkeypatch.setattr(network_figures, "_first_hessians", lambda runs, measurement: found)
    figure = network_figures.draw_densities([])
    assert figure is not None
    assert figure.axes[0].get_ylabel() == f"eigenvalues\nper unit of {unit}"
    [other] = [panel for panel in figure.axes[1:] if panel.get_ylabel()]
    assert other.get_ylabel() == "eigenvalues\nper unit of asinh(λ/100)"  # each network has its own scale
    density = np.asarray(figure.axes[0].lines[0].get_ydata(), dtype=float)
    peaks = (density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])
    assert peaks.sum() >= 2


def test_a_mean_over_iterations_ends_with_the_first_run_that_did_not_diverge():
    """Where a run ends, the mean of the others would jump."""
    runs = []
    for last, level, has_failed in ((40, 1.0, False), (30, 3.0, False), (10, 5.0, True)):
        iterations = np.arange(0, last + 1, 10)
        values = {"std": {"mean": np.full(len(iterations), level)}}
        runs.append(({"has_failed": has_failed}, ProbeStatistics({}, iterations, values)))
    panel = Figure().subplots()
    network_figures._draw_mean(panel, runs, "std", "mean", "black", "BatchNorm")
    [line] = panel.lines
    assert np.asarray(line.get_data()).tolist() == [[0, 10, 20, 30], [3, 3, 2, 2]]


def test_norms_are_compared_by_scaled_spectra_where_several_have_them(tmp_path):
    rows = []
    for norm, names in {
        "BatchNorm": ("hessian", "hessian-filter", "hessian-element"),
        "LayerNorm": ("hessian", "hessian-filter"),
        "Plain": ("hessian",),
    }.items():
        run = RunDirectory(tmp_path / norm)
        run.path.mkdir()
        for name in names:
            run.measurement(name).write_text("{}")
        rows.append(({"Model": "vgg", "Norm": norm}, run))
    name, runs = network_figures.comparable_spectra(rows)
    assert (name, [row["Norm"] for row, _ in runs]) == ("hessian-filter", ["BatchNorm", "LayerNorm"])
    name, runs = network_figures.comparable_spectra(rows[::2])
    assert (name, len(runs)) == ("hessian", 2)
    assert network_figures.comparable_spectra([]) == ("hessian", [])


WITHOUT_VALUES = json.dumps({"settings": {"curvature": "hessian", "bn_mode": "eval"}})


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"settings": 3}', WITHOUT_VALUES])
def test_a_damaged_measurement_is_named_and_left_out_of_the_densities(tmp_path, capsys, damage):
    run = RunDirectory(tmp_path)
    run.measurement("hessian").write_text(damage)
    assert network_figures.draw_densities([({"Model": "vgg", "Norm": "Plain"}, run)]) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(run.measurement("hessian")) in said


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"std": 3}'])
def test_damaged_layer_statistics_are_named_and_left_out(tmp_path, capsys, damage):
    run = RunDirectory(tmp_path)
    run.probes_summary.write_text(damage)
    assert read_probe_statistics([({"Model": "vgg", "Norm": "Plain"}, run)]) == []
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(run.probes_summary) in said
