"""Settings that build the same network are trained once in a sweep."""

import collections

import pytest

import run_sweep
from normstudy.sweeps import command, grid, same_networks


def sorted_out(*argv):
    """Return the runs of a grid that are kept, the pairs that are left out, and the line about them."""
    parsed = command.parse_command(argv)
    runs, _ = grid.expand(parsed.grid, parsed.options["preset"])
    kept, repeats = same_networks.without_repeats(runs)
    assert [run for run in runs if run in kept] == kept
    assert len(kept) + len(repeats) == len(runs)
    return kept, repeats, same_networks.describe_repeats(repeats)


def norms(runs):
    return [(run.config.norm_type, run.config.p_grouping) for run in runs]


@pytest.mark.parametrize("names", ["LayerNorm,InstanceNorm,GroupNorm", "GroupNorm,InstanceNorm,LayerNorm"])
def test_the_norm_without_groups_is_the_one_that_is_trained(names):
    kept, _, line = sorted_out(f"--norm_type={names}", "--p_grouping=1,8,1e-7")
    assert set(norms(kept)) == {("LayerNorm", 32), ("InstanceNorm", 32), ("GroupNorm", 8)}
    assert len(kept) == 3
    assert line.startswith("the same network is trained once: GroupNorm")
    assert "GroupNorm with p_grouping=1 is InstanceNorm (vgg)" in line
    assert "GroupNorm with p_grouping=1e-07 is LayerNorm (vgg)" in line
    assert line.endswith("; runs left out: 2")


def test_without_that_norm_the_first_setting_is_trained():
    kept, _, line = sorted_out("--norm_type=GroupNorm", "--p_grouping=1e-6,1,1e-7")
    assert norms(kept) == [("GroupNorm", 1e-6), ("GroupNorm", 1)]
    assert "GroupNorm with p_grouping=1e-07 is GroupNorm with p_grouping=1e-06 (vgg); runs left out: 1" in line


def test_layer_norm_of_a_transformer_is_another_network():
    kept, repeats, _ = sorted_out(
        "--arch=vgg,resnet-56,vit", "--norm_type=LayerNorm,InstanceNorm,GroupNorm", "--p_grouping=1,1e-7"
    )
    assert collections.Counter(run.config.arch for run in kept) == {"vgg": 2, "resnet-56": 2, "vit": 3}
    assert len(repeats) == 5


def test_runs_that_differ_in_anything_else_are_all_trained():
    axes = ["--seed=0,1", "--momentum=0,0.9", "--conv_type=Plain,sWS", "--init_lr=0.1,1"]
    kept, repeats, _ = sorted_out("--norm_type=InstanceNorm,GroupNorm", "--p_grouping=1", *axes)
    assert len(kept) == len(repeats) == 16
    assert all(run.config.identity() != other.config.identity() for run, other in repeats)


def test_the_original_study_has_fewer_networks_than_settings():
    kept, _, line = sorted_out("--preset=original")
    assert collections.Counter(run.config.arch for run in kept) == {"vgg": 136, "resnet-56": 256, "vit": 144}
    assert "GroupNorm with p_grouping=1 is InstanceNorm (vgg, resnet-56, vit)" in line
    assert "GroupNorm with p_grouping=1e-07 is LayerNorm (vgg, resnet-56)" in line
    assert line.endswith("; runs left out: 56")


def test_a_sweep_says_so_in_one_line(tmp_path, capsys):
    argv = ["--norm_type=InstanceNorm,GroupNorm", "--p_grouping=1", f"--results_dir={tmp_path}", "--dry_run"]
    assert run_sweep.main(argv) == 0
    said = capsys.readouterr().out
    assert said.count("the same network is trained once") == 1
    assert "1 run in" in said
    assert "new  vgg_InstanceNorm" in said
    assert run_sweep.main([*argv, "--norm_type=GroupNorm"]) == 0
    assert "same network" not in capsys.readouterr().out
