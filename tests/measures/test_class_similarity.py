"""The numbers of run_class_similarity.py against brute force."""

import pytest
import torch
from measures_helpers import read, reference

import run_class_similarity
from utils import class_means, mean_pairwise_cosine, neural_collapse


def test_class_similarity_is_that_of_brute_force(run):
    assert run_class_similarity.main([str(run.path), "--dtype=float64", "--batch_size=7"]) == 0
    content = read(run.path / "class_similarity.json")
    model, images, labels = reference(run, 50)
    with torch.no_grad():
        features = model.features(images)
    means = class_means(features, labels, 10)
    pooled = class_means(features.mean((2, 3)), labels, 10)
    centred = means - features.flatten(1).mean(0)
    for key, rows in (("", means), ("_pooled", pooled), ("_centred", centred)):
        assert content[f"class_similarity{key}"] == pytest.approx(mean_pairwise_cosine(rows), rel=1e-8)
    within = (features.flatten(1) - means[labels]).square().sum(1).mean().item()
    assert content["within_class_variance"] == pytest.approx(within, rel=1e-8)
    between = (centred[labels]).square().sum(1).mean().item()
    assert content["within_over_between"] == pytest.approx(within / between, rel=1e-8)
    matrix = torch.tensor(content["matrix"])
    assert matrix.shape == (10, 10)
    assert torch.equal(matrix, matrix.T)
    collapse = neural_collapse(features.mean((2, 3)), labels, model.classifier.weight, model(images).argmax(1))
    assert {key: content[key] for key in collapse} == pytest.approx(collapse, rel=1e-6)
    assert content["classes"] == [f"pattern {index}" for index in range(10)]
    assert (run.path / "class_similarity.png").read_bytes()[:4] == b"\x89PNG"


def test_the_test_images_can_be_measured(run):
    assert run_class_similarity.main([str(run.path), "--split=test"]) == 0
    assert read(run.path / "class_similarity.json")["num_samples"] == 20


def test_one_image_of_a_class_has_no_variance_within_it(run, capsys):
    assert run_class_similarity.main([str(run.path), "--samples=10"]) == 0
    content = read(run.path / "class_similarity.json")
    assert (content["within_class_variance"], content["within_over_between"]) == (0.0, None)
    assert content["nc1"] is None
    assert "variance undefined" in capsys.readouterr().out
