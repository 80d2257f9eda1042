"""Measurements of runs whose classes have unequal numbers of images."""

import pytest
import torch
from datasets_helpers import random_images, write_image
from helpers import NARROW, SMALL
from measures_helpers import copy, read

import config
import main
import run_class_similarity
import run_hessian
import run_landscape
import run_measures
from normstudy.curvature import ImageBlocks
from normstudy.datasets import Split, balanced_subset, deal_blocks
from normstudy.measures.checkpoints import Subset
from normstudy.measures.network_loss import NetworkLoss
from normstudy.measures.weight_noise import noise_measures
from normstudy.storage import RunDirectory

SIZES = {"cat": 40, "dog": 2}
ONE_PRODUCT = ["--lanczos_steps=1", "--num_probes=1", "--trace_probes=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a narrow VGG on 40 cats and 2 dogs."""
    images, results = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("results")
    for split in ("train", "test"):
        for name, size in SIZES.items():
            for index, pixels in enumerate(random_images(size, seed=size)):
                write_image(images / split / name / f"{index}.bmp", pixels)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(config.VGG_LAYERS, "cfg_10", NARROW)
        flags = [*SMALL, "--epochs=1", "--probe_layers=False", f"--data_dir={images}", f"--results_dir={results}"]
        return main.main(flags)


@pytest.fixture
def run(trained, tmp_path, narrow):
    copy(trained, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


@pytest.mark.parametrize(
    ("command", "flags", "name"),
    [
        (run_class_similarity, [], "class_similarity"),
        (run_hessian, ONE_PRODUCT, "hessian"),
        (run_measures, ["--measures=margin"], "measures"),
        (run_landscape, ["--points=1", "--directions=1"], "landscape"),
    ],
)
def test_every_measurement_takes_as_equally_many_images_as_there_are_and_says_so(command, flags, name, run, capsys):
    assert command.main([str(run.path), "--samples=20", *flags]) == 0
    assert "20 images, 18 of cat, 2 of dog" in capsys.readouterr().out
    assert read(run.path / f"{name}.json")["class_counts"] == [18, 2]


def test_shares_other_than_those_of_the_training_set_are_said_where_the_loss_is_measured(run, capsys):
    assert run_measures.main([str(run.path), "--samples=20", "--measures=margin"]) == 0
    assert "does not estimate the training loss; --balance=proportional does" in capsys.readouterr().out
    assert (
        run_measures.main([str(run.path), "--samples=21", "--measures=margin", "--balance=proportional", "--overwrite"])
        == 0
    )
    assert "does not estimate" not in capsys.readouterr().out
    assert read(run.path / "measures.json")["class_counts"] == [20, 1]


def test_too_few_samples_for_class_similarity_are_said_with_the_class_and_a_number_that_works(run, capsys):
    assert run_class_similarity.main([str(run.path), "--samples=4", "--balance=proportional"]) == 1
    line = capsys.readouterr().err
    assert "no image of class dog" in line
    assert "use --samples=11 or more, or --balance=equal" in line
    assert run_class_similarity.main([str(run.path), "--samples=11", "--balance=proportional"]) == 0


def test_a_class_that_train_samples_left_out_is_said_with_this_flag(trained, tmp_path, narrow, capsys):
    images = read(trained / "config.json")["data_dir"]
    flags = [*SMALL, "--epochs=1", "--probe_layers=False", f"--data_dir={images}", f"--results_dir={tmp_path}"]
    run = main.main([*flags, "--train_samples=20", "--balance=proportional"])
    assert read(run / "config.json")["data"]["train_samples"] == 20
    other = main.main([*flags, "--train_samples=4", "--balance=proportional"])
    assert run_class_similarity.main([str(other)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "class dog has no train images, because it was trained with --train_samples=4" in line


def test_blocks_hold_evenly_many_of_each_class_whatever_its_size():
    labels = torch.tensor([0] * 112 + [1] * 25 + [2] * 3)
    counts = torch.stack([torch.bincount(labels[block], minlength=3) for block in deal_blocks(labels, 10)])
    assert (counts.amax(0) - counts.amin(0)).max() == 1


def test_the_image_error_is_not_too_small_where_the_scarcely_sampled_class_varies_most():
    """The mean of equally many images of each class has a known variance. Only the largest class varies."""
    sizes, samples = [50, 50, 400], 120
    labels = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    values = torch.where(
        labels == 2, torch.randn(len(labels), generator=torch.Generator().manual_seed(0)), 1.0
    ).double()
    within = values[labels == 2].var().item()
    true = (1 / 3) ** 2 * within / 40 * (1 - 40 / 400)
    variances = []
    for seed in range(200):
        chosen = balanced_subset(labels, samples, 3, seed)
        subset = Subset(Split(torch.empty(samples, 0), labels[chosen]), "", [40] * 3, sizes)
        blocks = [values[chosen[block]].mean() for block in deal_blocks(labels[chosen], 10)]
        fraction = ImageBlocks([lambda v: v] * 10, [12] * 10, subset.pool()).pool_fraction
        variances.append((1 - fraction) * torch.stack(blocks).var().item() / 10)
    assert sum(variances) / len(variances) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize(
    ("counts", "sizes", "pool"),
    [
        ([10, 10], [100, 100], 200),
        ([13, 12], [100, 100], 200),
        ([20, 2], [100, 10], 110),
        ([10, 10], [100, 10], 200),
        ([0, 10], [100, 10], None),
        ([100, 10], [100, 10], 110),
    ],
)
def test_the_pool_is_that_of_the_class_with_the_smallest_fraction(counts, sizes, pool):
    subset = Subset(Split(torch.empty(sum(counts), 0), torch.zeros(sum(counts))), "", counts, sizes)
    assert subset.pool() == pool


def test_a_network_that_names_only_the_largest_class_is_at_chance():
    layer = torch.nn.Linear(3, 2)
    layer.load_state_dict({"weight": 1e-3 * layer.weight, "bias": torch.tensor([9.0, 0.0])})
    model = torch.nn.Sequential(torch.nn.Flatten(), layer)
    batch = torch.randn(20, 3, 1, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([0] * 18 + [1] * 2)
    measures, _ = noise_measures(NetworkLoss(model, [batch]), torch.Generator().manual_seed(0))
    assert measures["pac_bayes_sigma"] is None


def test_centred_similarity_of_a_simplex_does_not_depend_on_the_numbers_of_images(run):
    """With two classes, the centred means are opposite, so their cosine is −1 for any numbers of images."""
    assert run_class_similarity.main([str(run.path), "--samples=42"]) == 0
    assert read(run.path / "class_similarity.json")["class_similarity_centred"] == pytest.approx(-1, abs=1e-6)
