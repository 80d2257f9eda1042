"""Command lines of a sweep: what is refused before anything starts, and what does not apply to any run."""

import pytest

import run_sweep
from normstudy.cli import UsageError
from normstudy.sweeps import command


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--cluster=slurm", "--gpus=0,1"], "--gpus applies only to --cluster=local; use --slurm_gpus"),
        (["--cluster=slurm", "--fail_fast"], "--fail_fast applies only to --cluster=local"),
        (["--slurm_time=30"], "--slurm_time applies only to --cluster=slurm"),
        (["--slurm_flags=--qos=low"], "--slurm_flags applies only to --cluster=slurm"),
        (["--wait=False"], "--wait applies only to --cluster=slurm"),
        (["--gpus=0,1", "--device=cpu"], "cannot be combined with --device=cpu"),
        (["--gpus=0,1", "--device=cuda:1"], "cannot be combined with --device=cuda:1"),
        (["--measures_flags=--samples=9"], "--measures_flags applies only if --measure names measures"),
        (["--measure=none", "--hessian_flags="], "--hessian_flags applies only if --measure names hessian"),
        (["--status", "--dry_run"], "--status cannot be combined with --dry_run"),
        (["--status", "--follow=1"], "--status cannot be combined with --follow"),
        (["--follow="], "--follow needs a run"),
        (["--hessian_flags=--tag='a"], "cannot be split into flags: no closing quotation"),
        (["--measure=measures", "--measures_flags=a\\"], "cannot be split into flags: no escaped character"),
        (["--cluster=slurm", "--slurm_flags=--comment='a"], "cannot be split into flags: no closing quotation"),
        (["--cluster=slurm", "--slurm_flags=qos=low"], "'qos=low' is not of the form --name=value"),
        (["--hessian_flags=results/run"], "--hessian_flags takes neither RUN nor --results_dir"),
        (["--hessian_flags=--results_dir=elsewhere"], "--hessian_flags takes neither RUN nor --results_dir"),
        (["--norm_type=LayerNorm", "--sync_bn"], "--sync_bn applies to no run of this sweep"),
        (["--norm_type=LayerNorm,RMSNorm", "--p_grouping=8,32"], "--p_grouping applies to no run of this sweep"),
        (["--dataset=Synthetic", "--data_dir=images"], "--data_dir applies to no run of this sweep"),
    ],
)
def test_no_flag_is_accepted_and_ignored(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        run_sweep.main(argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [["--cluster=local", "--wait=True"], ["--cluster=slurm", "--fail_fast=False"]])
def test_a_flag_that_asks_for_nothing_is_no_error(argv):
    command.parse_command(argv)


@pytest.mark.parametrize(
    "flag", ["--sync_bn", "--download=True", "--data_dir=images", "--p_grouping=8", "--cfg=cfg_20", "--skipinit=True"]
)
def test_flags_that_apply_to_some_combinations_are_dropped_from_the_others(flag):
    argv = ["--arch=vgg,resnet-56", "--norm_type=BatchNorm,LayerNorm,GroupNorm", "--dataset=CIFAR-10,Synthetic", flag]
    runs, remarks = command.runs_of(command.parse_command(argv))
    assert len(runs) == 12
    assert remarks == []
    name = flag.removeprefix("--").partition("=")[0]
    have = [any(word.startswith(f"--{name}=") for word in run.flags) for run in runs]
    assert 0 < sum(have) < 12


def test_a_boolean_flag_without_a_value_means_true():
    runs, _ = command.runs_of(command.parse_command(["--lr_warmup", "--sync_bn", "--seed=0,1"]))
    assert [(run.config.lr_warmup, run.config.sync_bn) for run in runs] == [(True, True)] * 2


def test_train_mode_is_measured_only_where_it_differs():
    def measured(norm_type: str, *flags: str) -> list[str]:
        given = [f"--hessian_flags={each}" for each in flags]
        parsed = command.parse_command([f"--norm_type={norm_type}", "--dataset=Synthetic", "--measure=hessian", *given])
        [run] = command.runs_of(parsed)[0]
        return list(run.measurements)

    both = ("--scale=filter", "--scale=filter --bn_mode=train")
    assert measured("BatchNorm", *both) == ["hessian-filter", "hessian-train-filter"]
    assert measured("GroupNorm", *both) == ["hessian-filter"]
    assert measured("GroupNorm", both[0] + " --samples=9", both[1]) == ["hessian-filter", "hessian-train-filter"]
    assert measured("GroupNorm", both[1]) == ["hessian-train-filter"]
