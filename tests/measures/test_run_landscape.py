"""The command run_landscape.py, its files and its pictures."""

import json

import pytest
import torch
from measures_helpers import read
from torch.nn import functional as F

import run_landscape
from models import build_from_config
from normstudy.datasets import balanced_subset, evaluation_batches, load
from normstudy.plots import draw_landscape
from normstudy.storage import identity_hash, stored_config

QUICK = ["--samples=20", "--points=2", "--directions=2", "--dtype=float64"]
LINE = ["--samples=20", "--points=2", "--dtype=float64"]


@pytest.fixture
def run(narrow, train, tmp_path):
    """A finished run of a narrow VGG on two classes, with checkpoints of epochs 0, 5 and 6."""
    return train(tmp_path, "--probe_layers=False")


@pytest.fixture
def other(narrow, train, tmp_path):
    """The same with another learning rate."""
    return train(tmp_path, "--probe_layers=False", "--init_lr=0.5")


def loss_of(run, epoch=6):
    config = stored_config(run)
    images = load(config).train
    chosen = images.take(balanced_subset(images.labels, 20, 2, seed=0))
    model = build_from_config(config, 2).double().eval()
    model.load_state_dict(torch.load(run.checkpoint(epoch), weights_only=True))
    with torch.no_grad():
        [(x, y)] = evaluation_batches(chosen, config.image_size)
        return F.cross_entropy(model(x.double()), y).item()


def test_the_file_and_the_picture_of_the_losses_around_a_network(run, capsys):
    assert run_landscape.main([str(run.path), *QUICK]) == 0
    content = read(run.path / "landscape.json")
    assert content["distances"] == [-0.5, -0.25, 0, 0.25, 0.5]
    assert content["loss"]["stored"] == pytest.approx(loss_of(run))
    assert len(content["random"]) == 2
    for losses in (*content["random"], content["eigenvector"]["losses"]):
        assert losses["stored"][2] == pytest.approx(content["loss"]["stored"])
        assert losses["reestimated"][2] == pytest.approx(content["loss"]["reestimated"])
    reach = content["eigenvector"]["distances"][-1]
    assert reach <= 0.5
    assert content["eigenvector"]["eigenvalue"] * reach**2 / 2 <= 2.0001
    picture = run.path / "landscape.png"
    drawn = picture.read_bytes()
    picture.unlink()
    draw_landscape(run.path / "landscape.json")
    assert picture.read_bytes() == drawn
    assert run_landscape.main([str(run.path), *QUICK]) == 0
    assert "already exists" in capsys.readouterr().out


def test_losses_that_are_not_finite_are_drawn_as_gaps(run):
    assert run_landscape.main([str(run.path), *QUICK]) == 0
    path = run.path / "landscape.json"
    content = read(path)
    content["random"][0]["stored"][0] = content["eigenvector"]["losses"]["stored"][4] = None
    path.write_text(json.dumps(content))
    draw_landscape(path)


def test_the_line_to_another_run_meets_both_networks(run, other):
    assert run_landscape.main([str(run.path), f"--to={other.path}", *LINE]) == 0
    [path] = run.path.glob("landscape-to-*.json")
    assert path.stem == f"landscape-to-{identity_hash(stored_config(other))}"
    content = read(path)
    assert content["shares"] == [0, 0.25, 0.5, 0.75, 1]
    assert content["losses"]["stored"][0] == pytest.approx(loss_of(run))
    assert content["losses"]["stored"][-1] == pytest.approx(loss_of(other))
    assert content["to"] == {"run": other.path.name, "epoch": 6}
    assert content["barrier"]["stored"] >= 0
    assert path.with_suffix(".png").exists()
    assert not (run.path / "landscape.json").exists()


def test_the_line_from_the_start_of_training_to_its_end(run):
    assert run_landscape.main([str(run.path), f"--to={run.path}", "--checkpoint=epoch_0000", *LINE]) == 0
    [path] = run.path.glob("landscape-to-*_epoch_0000.json")
    content = read(path)
    assert content["losses"]["stored"][0] == pytest.approx(loss_of(run, 0))
    assert content["losses"]["stored"][-1] == pytest.approx(loss_of(run))


def test_another_result_of_the_other_run_is_noticed(run, other, capsys):
    assert run_landscape.main([str(run.path), f"--to={other.path}", *LINE]) == 0
    [path] = run.path.glob("landscape-to-*.json")
    content = read(path)
    content["settings"]["to_checkpoint"] = "0" * 64
    path.write_text(json.dumps(content))
    assert run_landscape.main([str(run.path), f"--to={other.path}", *LINE]) == 1
    assert "has other settings (to_checkpoint=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--norm_type=LayerNorm"], "has another network (norm_type=LayerNorm, here BatchNorm)"),
        (["--train_samples=20"], "was trained on other images"),
    ],
)
def test_a_line_between_different_networks_or_images_is_refused(run, train, tmp_path, capsys, flags, message):
    stranger = train(tmp_path, "--probe_layers=False", *flags)
    assert run_landscape.main([str(run.path), f"--to={stranger.path}", *LINE]) == 1
    assert message in capsys.readouterr().err


def test_a_line_needs_two_ends(run, tmp_path, capsys):
    assert run_landscape.main([str(run.path), f"--to={run.path}", *LINE]) == 1
    assert "is both ends of the line" in capsys.readouterr().err


def test_flags_that_do_not_apply_to_a_line_are_refused(run, capsys):
    for flag in ("--directions=3", "--distance=1"):
        with pytest.raises(SystemExit, match="2"):
            run_landscape.main([str(run.path), f"--to={run.path}", flag])
        assert "does not apply to --to" in capsys.readouterr().err


def test_a_norm_without_running_statistics_has_one_curve(narrow, train, tmp_path):
    run = train(tmp_path, "--probe_layers=False", "--norm_type=LayerNorm")
    assert run_landscape.main([str(run.path), *QUICK]) == 0
    content = read(run.path / "landscape.json")
    assert content["loss"]["reestimated"] is None
    assert content["random"][0]["reestimated"] is None
    assert not content["has_running_statistics"]
