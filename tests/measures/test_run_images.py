"""Images that moved or changed since a run was trained on them."""

import shutil

from helpers import SMALL

import main
import run_class_similarity


def test_images_that_are_not_there_are_said_with_the_run_and_where_its_path_comes_from(small, tmp_path, narrow, capsys):
    images = tmp_path / "images"
    shutil.copytree(small[-1].partition("=")[2], images)
    folder = main.main(
        [*SMALL, "--probe_layers=False", f"--data_dir={images}", "--epochs=1", f"--results_dir={tmp_path}"]
    )
    shutil.move(images, tmp_path / "moved")
    assert run_class_similarity.main([str(folder)]) == 1
    line = capsys.readouterr().err
    assert all(words in line for words in (str(folder), f"config.json says that they are in {images}", "--data_dir"))
    assert run_class_similarity.main([str(folder), f"--data_dir={tmp_path / 'moved' / 'train'}"]) == 1
    assert f"try --data_dir={tmp_path / 'moved'}" in capsys.readouterr().err
    assert run_class_similarity.main([str(folder), f"--data_dir={tmp_path / 'moved'}"]) == 0
    (tmp_path / "moved" / "train" / "cat" / "0.png").unlink()
    assert run_class_similarity.main([str(folder), f"--data_dir={tmp_path / 'moved'}", "--overwrite=True"]) == 1
    line = capsys.readouterr().err
    assert "2 classes, 50 training images" in line
    assert "2 classes, 49 training images" in line
