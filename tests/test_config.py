"""The command line and the schedule."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from config import from_settings, learning_rate, num_groups, parse_args

ROOT = Path(__file__).parent.parent


def refused(argv, capsys):
    """Return the line on stderr with which a command line is refused; it must be the only one."""
    with pytest.raises(SystemExit) as stop:
        parse_args(argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_defaults_are_those_of_the_original_readme():
    settings = parse_args([])
    expected = {
        "arch": "vgg",
        "p_grouping": 32.0,
        "skipinit": False,
        "preact": False,
        "probe_layers": True,
        "init_lr": 1.0,
        "lr_warmup": False,
        "batch_size": 256,
        "dataset": "CIFAR-100",
        "download": False,
        "cfg": "cfg_10",
        "seed": 0,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "epochs": 60,
    }
    assert {name: getattr(settings, name) for name in expected} == expected


def test_a_run_is_one_frozen_value():
    settings: Any = parse_args([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1


@pytest.mark.parametrize(("batch_size", "epochs"), [(256, 60), (32, 60), (31, 10), (16, 10)])
def test_small_batches_train_for_ten_epochs(batch_size, epochs):
    assert parse_args([f"--batch_size={batch_size}"]).epochs == epochs


@pytest.mark.parametrize("flag", ["-a", "-arch", "--arch"])
@pytest.mark.parametrize("joined", [True, False])
def test_arch_has_three_spellings(flag, joined):
    argv = [f"{flag}=ResNet-56"] if joined else [flag, "RESNET-56"]
    assert parse_args(argv).arch == "resnet-56"


@pytest.mark.parametrize(
    ("older", "name"),
    [
        ("Instance Normalization", "InstanceNorm"),
        ("Instance_Normalization", "InstanceNorm"),
        ("Filter_Response_Normalization", "FilterResponseNorm"),
        ("Variance_Normalization", "VarianceNorm"),
        ("batchnorm", "BatchNorm"),
        ("evonorms0", "EvoNormSO"),
        ("EvoNormB0", "EvoNormBO"),
        ("Scaled Weight Standardization", "ScaledWeightStandardization"),
    ],
)
def test_older_names_and_any_case_are_accepted(older, name):
    assert parse_args([f"--norm_type={older}"]).norm_type == name


@pytest.mark.parametrize("dataset", ["cifar10", "CIFAR-10", "cifar-10", "Cifar_10"])
def test_cifar_10_is_not_cifar_100(dataset):
    assert parse_args([f"--dataset={dataset}"]).dataset == "CIFAR-10"


@pytest.mark.parametrize(
    ("argv", "value"),
    [(["--download"], True), (["--download=true"], True), (["--download", "FALSE"], False), ([], False)],
)
def test_booleans(argv, value):
    assert parse_args(argv).download is value


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--arch=vg"], ["vg", "did you mean vgg"]),
        (["--norm_type=foo"], ["foo", "BatchNorm"]),
        (["--norm_typ=BatchNorm"], ["--norm_typ", "did you mean --norm_type (Normalization layer"]),
        (["--init_lrs=0.1"], ["--init_lrs=0.1", "did you mean --init_lr (Factor on the learning rate"]),
        (["extra"], ["extra"]),
        (["--epochs=0"], ["--epochs", "at least 1"]),
        (["--epochs=1" + 400 * "0"], ["--epochs", "at most"]),
        (["--epochs=1.5"], ["--epochs", "whole number"]),
        (["--batch_size=-1"], ["--batch_size"]),
        (["--batch_size="], ["--batch_size"]),
        (["--seed=-1"], ["--seed"]),
        (["--init_lr=0"], ["--init_lr", "above 0"]),
        (["--init_lr=nan"], ["--init_lr"]),
        (["--init_lr=inf"], ["--init_lr"]),
        (["--momentum=1"], ["--momentum", "below 1"]),
        (["--weight_decay=-1e-4"], ["--weight_decay"]),
        (["--val_fraction=1"], ["--val_fraction"]),
        (["--download=yes"], ["--download", "True nor False"]),
        (["--precision=fp16"], ["--precision", "bf16"]),
        (["--device=gpu"], ["--device"]),
        (["--skipinit=True"], ["--skipinit", "resnet-56", "vgg"]),
        (["--arch=vit", "--preact"], ["--preact", "resnet-56", "vit"]),
        (["--arch=vit", "--cfg=cfg_20"], ["--cfg", "vgg"]),
        (["--patch_size=4"], ["--patch_size", "vit"]),
        (["--norm_type=BatchNorm", "--p_grouping=32"], ["--p_grouping", "GroupNorm", "BatchNorm"]),
        (["--norm_type=WeightNorm", "--conv_type=sWS"], ["WeightNorm", "--conv_type"]),
        (["--norm_type=ScaledWeightStandardization", "--conv_type=WeightNormalized"], ["--conv_type"]),
        (["--norm_type=LayerNorm", "--sync_bn"], ["--sync_bn", "BatchNorm", "LayerNorm"]),
        (["--dataset=Synthetic", "--download"], ["--download", "Synthetic"]),
        (["--dataset=Synthetic", "--data_dir=x"], ["--data_dir", "Synthetic"]),
        (["--dataset=Synthetic", "--cache_dir=x"], ["--cache_dir", "Synthetic"]),
        (["--balance=proportional"], ["--balance", "--train_samples"]),
        (["--probe_layers=False", "--probe_every=2"], ["--probe_every"]),
        (["--arch=vit", "--image_size=32", "--patch_size=5"], ["--patch_size=5", "image_size of 32"]),
        (["--norm_type=GroupNorm", "--p_grouping=48"], ["convolution 1", "64 channels", "48 groups"]),
        (["--norm_type=GroupNorm", "--p_grouping=0.3"], ["--p_grouping", "0.3"]),
        (["--norm_type=GroupNorm", "--p_grouping=0"], ["--p_grouping"]),
        (["--arch=resnet-56", "--norm_type=GroupNorm", "--p_grouping=64"], ["stage 1", "32 channels", "64 groups"]),
        (["--c_dir=somewhere", "--epochs=3"], ["--epochs", "--c_dir"]),
    ],
)
def test_a_wrong_flag_is_refused_in_one_line_that_names_it(argv, names, capsys):
    line = refused(argv, capsys)
    assert all(name in line for name in names), line


def test_a_stored_flag_that_earlier_versions_ignored_is_dropped():
    stored = vars(parse_args(["--norm_type=LayerNorm"])) | {"sync_bn": True}
    assert from_settings(stored) == parse_args(["--norm_type=LayerNorm"])


def test_c_dir_leaves_runtime_flags_free():
    settings = parse_args(["--c_dir=somewhere", "--device=cpu"])
    assert (settings.c_dir, settings.device) == ("somewhere", "cpu")


def test_paths_and_devices_are_not_part_of_a_runs_identity():
    here = parse_args(["--data_dir=a", "--results_dir=b", "--device=cpu", "--keep=last"])
    assert here.identity() == parse_args([]).identity()


def test_every_other_field_is_part_of_a_runs_identity():
    runtime = {"data_dir", "cache_dir", "download", "results_dir", "device", "cuda_graph", "keep", "overwrite", "c_dir"}
    runtime |= {"checkpoint_minutes", "mix_versions", "sync_bn", "dump_every", "eval_every", "tensorboard", "given"}
    others = {
        *("batch_shares", "optimizer", "nesterov", "lr", "lr_schedule", "augment", "label_smoothing", "clip_grad"),
        *("weight_decay_on", "stop_at_loss", "deterministic", "balance"),
    }
    fields = {f.name for f in dataclasses.fields(config.Config)} - runtime
    assert parse_args([]).identity().keys() == fields - others
    changed: dict[str, Any] = dict.fromkeys(others, "another value")
    assert dataclasses.replace(parse_args([]), **changed).identity().keys() == fields


@pytest.mark.parametrize(
    ("p_grouping", "width", "groups"),
    [(1, 64, 64), (0.5, 64, 32), (0.25, 64, 16), (0.03125, 64, 2), (1e-7, 64, 1), (8, 64, 8), (64, 64, 64)],
)
def test_p_grouping_counts_groups(p_grouping, width, groups):
    assert num_groups(p_grouping, width, "layer") == groups


@pytest.mark.parametrize(
    ("arch", "norm_type", "p_grouping", "canonical"),
    [
        ("vgg", "GroupNorm", 1.0, ("InstanceNorm", None)),
        ("resnet-56", "GroupNorm", 1.0, ("InstanceNorm", None)),
        ("vit", "GroupNorm", 1.0, ("InstanceNorm", None)),
        ("vit", "GroupNorm", 384.0, ("InstanceNorm", None)),
        ("vgg", "GroupNorm", 1e-7, ("LayerNorm", None)),
        ("vgg", "GroupNorm", 1 / 512, ("LayerNorm", None)),
        ("vgg", "GroupNorm", 1 / 256, ("GroupNorm", 1 / 256)),
        ("resnet-56", "GroupNorm", 1 / 128, ("LayerNorm", None)),
        ("resnet-56", "GroupNorm", 1 / 64, ("GroupNorm", 1 / 64)),
        ("vit", "GroupNorm", 1 / 384, ("GroupNorm", 1e-7)),
        ("vit", "GroupNorm", 1e-7, ("GroupNorm", 1e-7)),
        ("vgg", "GroupNorm", 32.0, ("GroupNorm", 32.0)),
        ("vgg", "GroupNorm", 0.3, ("GroupNorm", 0.3)),
        ("resnet-56", "GroupNorm", 32.0, ("GroupNorm", 32.0)),
        ("vgg", "InstanceNorm", 32.0, ("InstanceNorm", None)),
        ("vgg", "BatchNorm", 1.0, ("BatchNorm", None)),
    ],
)
def test_a_normalization_has_one_canonical_name(arch, norm_type, p_grouping, canonical):
    assert config.canonical_norm(arch, norm_type, p_grouping) == canonical


def test_schedule_without_warmup_drops_in_the_last_quarter():
    settings = parse_args(["--epochs=4", "--init_lr=2", "--batch_size=128"])
    rates = [learning_rate(settings, step, 10) for step in range(40)]
    assert rates == pytest.approx([0.1] * 30 + [0.01] * 10)


def test_warmup_rises_from_zero_over_five_epochs_and_the_quarter_is_of_the_rest():
    settings = parse_args(["--epochs=25", "--lr_warmup=True"])
    rates = [learning_rate(settings, step, 2) for step in range(50)]
    assert rates == pytest.approx([0.01 * step for step in range(10)] + [0.1] * 30 + [0.01] * 10)


def test_short_runs_warm_up_for_one_epoch():
    settings = parse_args(["--epochs=10", "--lr_warmup=True"])
    assert [learning_rate(settings, step, 4) for step in range(5)] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])


@given(st.integers(1, 70), st.integers(1, 400), st.booleans(), st.floats(0, 1.5))
def test_schedule_is_defined_and_bounded_at_every_step_of_every_length(epochs, steps, warmup, position):
    settings = parse_args([f"--epochs={epochs}", f"--lr_warmup={warmup}"])
    assert 0 <= learning_rate(settings, int(position * epochs * steps), steps) <= 0.1


@given(st.integers(1, 70), st.integers(1, 400))
def test_exactly_the_last_quarter_is_decayed(epochs, steps):
    settings = parse_args([f"--epochs={epochs}"])
    decayed = sum(learning_rate(settings, step, steps) < 0.05 for step in range(epochs * steps))
    assert decayed == math.floor(epochs * steps / 4)


def test_help_answers_before_torch_is_loaded():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['main.py', '--help']\n"
        "try:\n    runpy.run_path('main.py', run_name='__main__')\n"
        "except SystemExit:\n    print('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--norm_type" in answer.stdout
    assert answer.stdout.endswith("False\n")


def test_config_needs_no_torch():
    code = "import sys, config; config.parse_args([]); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
