"""docs/adding.md adds a norm, a network and a measure: its blocks of code, put into a copy of the program."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from normstudy.storage import MEASUREMENTS

ROOT = Path(__file__).parent.parent
NAME = "MeanAbsoluteNorm"
SMALL = ["--dataset=Synthetic", "--train_samples=60", "--test_samples=20", "--image_size=16", "--batch_size=20"]
SMALL += ["--epochs=1", "--device=cpu", "--results_dir=results"]
NARROW = "--cfg=cfg_10_narrow"

EVERYTHING = f"""
import sys
from pathlib import Path
import torch
import main, run_class_similarity, run_hessian, run_report
from models import build_model

SMALL = sys.argv[1:]
sizes = {{"vit": {{"patch_size": 8}}}}
for arch, flags in {{"vgg": ["--cfg=cfg_10_narrow"], "resnet-56": [], "vit": ["--patch_size=8"]}}.items():
    main.main([f"--arch={{arch}}", "--norm_type=mean absolute norm", *SMALL, *flags])
    model = build_model(arch, norm_type="{NAME}", num_classes=10, image_size=16, **sizes.get(arch, {{}}))
    assert any(type(module).__name__ == "{NAME}" for module in model.modules())
[vgg] = map(str, Path("results").glob("vgg_*"))
assert run_hessian.main([vgg, "--samples=10", "--lanczos_steps=2", "--num_probes=1", "--trace_probes=1"]) == 0
assert run_class_similarity.main(["--results_dir=results", "--samples=20"]) == 0
assert run_report.main(["--results_dir=results", "--resamples=100"]) == 0
"""

# one with groups and a running statistic that is no moment: name, class, line
GROUPED = (
    '    "GroupMaximumNorm": NormTraits(has_groups=True, has_batch_statistics=True),\n',
    """

class GroupMaximumNorm(_RunningNorm):
    def __init__(self, num_channels, num_groups):
        super().__init__(num_channels, running_maximum=1.0)
        self.num_groups = _check_groups("GroupMaximumNorm", num_channels, num_groups)

    def forward(self, x):
        size = self.running_maximum
        if self.training:
            grouped = x.unflatten(1, (self.num_groups, -1)).abs().amax((0, 2, 3, 4))
            size = grouped.repeat_interleave(self.num_channels // self.num_groups)
            self.update(running_maximum=size)
        return self.affine(x, 1 / (size + EPS)[None])
""",
    '    "GroupMaximumNorm": NormType(GroupMaximumNorm),\n',
)
BATCH = (
    '    "BatchRMSNorm": NormTraits(has_batch_statistics=True),\n',
    '    "BatchRMSNorm": NormType(_of_channels(BatchRMSNorm)),\n',
)


PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")


def blocks(section):
    """The blocks of code in a section of docs/adding.md."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```(?:python)?\n(.*?)```", text, re.DOTALL)


def copy_of_the_program(folder, edits):
    """Copy the program into a folder; edits: {file: [(text, its replacement)]}, each text occurring once."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "normstudy", folder / "normstudy", ignore=shutil.ignore_patterns("__pycache__"))
    for file, replacements in edits.items():
        text = (folder / file).read_text(encoding="utf-8")
        for old, new in replacements:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (folder / file).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the program with the norm of docs/adding.md and two more."""
    name, layer, line, batch_layer = blocks("A norm")
    names, layers = name + GROUPED[0] + BATCH[0], f"{layer}\n\n{GROUPED[1]}\n\n{batch_layer}"
    lines = line + GROUPED[2] + BATCH[1]
    last_name, last_line = "\n}\nNORM_TYPES = ", "\n}\n\n\ndef build_norm"
    edits = {
        "config.py": [(last_name, last_name.replace("\n}", f"\n{names}}}"))],
        "layer_defs.py": [
            ("\nNORMS = {\n", f"\n{layers}\n\nNORMS = {{\n"),
            (last_line, last_line.replace("\n}", f"\n{lines}}}")),
        ],
    }
    return copy_of_the_program(tmp_path_factory.mktemp("program"), edits)


def call(folder, *arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_trains_in_every_network_and_is_measured_and_reported(extended):
    call(extended, "-c", EVERYTHING, *SMALL)
    page = (extended / "results" / "report.html").read_text(encoding="utf-8")
    rows = (extended / "results" / "results.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 4
    assert all(f",{NAME}," in row for row in rows[1:])
    assert NAME in page


def test_flags_and_sweeps_know_it(extended):
    assert NAME in call(extended, "main.py", "--help")
    said = call(extended, "run_sweep.py", f"--norm_type={NAME},BatchNorm", "--arch=vgg,vit", "--dry_run")
    assert said.count(f"_{NAME}_") == 2


FOLDED = """
import torch
from normstudy.curvature import hessian_matvec
from models import build_model

torch.manual_seed(0)
model = build_model("vgg", norm_type="BatchRMSNorm", num_classes=3, cfg="cfg_10_narrow").double()
images, labels = torch.randn(6, 3, 16, 16).double(), torch.arange(6) % 3
model(images)
matvec, size = hessian_matvec(model.eval(), [(images, labels)])
vector = torch.randn(size).double()
loss = torch.nn.functional.cross_entropy(model(images), labels)
gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
flat = torch.cat([gradient.flatten() for gradient in gradients])
expected = torch.autograd.grad(flat @ vector, list(model.parameters()))
torch.testing.assert_close(matvec(vector), torch.cat([each.flatten() for each in expected]))
"""


def test_one_with_statistics_of_the_batch_has_the_hessian_of_its_eval_mode(extended):
    call(extended, "main.py", "--norm_type=BatchRMSNorm", NARROW, *SMALL[:-1], "--results_dir=batch")
    call(extended, "-c", FOLDED)


def test_one_with_groups_takes_their_number_and_running_statistics(extended):
    call(
        extended,
        "main.py",
        "--norm_type=GroupMaximumNorm",
        "--p_grouping=0.25",
        NARROW,
        *SMALL[:-1],
        "--results_dir=grouped",
    )
    [run] = (extended / "grouped").glob("vgg_GroupMaximumNorm_Synthetic_p0.25_*")
    look = f"import torch; print(torch.load('{run}/checkpoints/epoch_0001.pt')['blocks.0.norm.running_maximum'])"
    sizes = [float(x) for x in re.findall(r"\d+\.\d+", call(extended, "-c", look))]
    assert len(sizes) >= 4
    assert len(set(sizes[:4])) == 1 != sizes[0]


NETWORK = """
import sys
import main, run_class_similarity, run_hessian, run_report

for norm in (["--norm_type=BatchNorm"], ["--norm_type=GroupNorm", "--p_grouping=8"], ["--norm_type=WeightNorm"]):
    main.main(["--arch=conv-3", *norm, *sys.argv[1:]])
assert run_hessian.main(["--results_dir=results", "--samples=10", "--lanczos_steps=2", "--trace_probes=1"]) == 0
assert run_class_similarity.main(["--results_dir=results", "--samples=20"]) == 0
assert run_report.main(["--results_dir=results", "--resamples=100"]) == 0
"""


def test_a_network_is_trained_measured_and_reported(tmp_path):
    archs, layers, network, built = blocks("A network")
    old_archs = next(line for line in (ROOT / "config.py").read_text().splitlines() if line.startswith("ARCHS = "))
    last_layers = '    "vit": lambda config: ("block", (VIT_WIDTH,)),\n'
    edits = {
        "config.py": [(f"{old_archs}\n", archs), (last_layers, f"{last_layers}{layers}")],
        "models.py": [
            ("\nNetwork = ", f"\n{network}\n\nNetwork = "),
            ("    return ResNet(layers,", f"{built}    return ResNet(layers,"),
        ],
    }
    folder = copy_of_the_program(tmp_path, edits)
    call(folder, "-c", NETWORK, *SMALL)
    assert len((folder / "results" / "results.csv").read_text(encoding="utf-8").splitlines()) == 4
    assert "conv-3" in (folder / "results" / "report.html").read_text(encoding="utf-8")
    refused = subprocess.run(
        [sys.executable, "main.py", "--arch=conv-3", "--norm_type=GroupNorm", "--p_grouping=64", *SMALL],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert "convolution 1 of conv-3 has 32 channels" in refused.stderr


MEASURE = """
import sys
import main, run_measures, run_report

main.main(sys.argv[1:])
assert run_measures.main(["--results_dir=results", "--samples=20", "--measures=weights"]) == 0
assert run_report.main(["--results_dir=results", "--resamples=100"]) == 0
"""


def test_a_measure_is_one_function_and_one_line(tmp_path):
    function, line = blocks("A measure")
    folder = copy_of_the_program(
        tmp_path, {"normstudy/storage/measure_columns.py": [("\n}\nMEASURE_COLUMNS", f"\n{line}}}\nMEASURE_COLUMNS")]}
    )
    with open(folder / "normstudy" / "measures" / "simple_measures.py", "a", encoding="utf-8") as file:
        file.write(f"\n\n{function}")
    call(folder, "-c", MEASURE, *SMALL, NARROW)
    [run] = (folder / "results").glob("vgg_*")
    assert json.loads((run / "measures.json").read_text(encoding="utf-8"))["weight_sparsity"] == 0
    [row] = csv.DictReader((folder / "results" / "results.csv").read_text(encoding="utf-8").splitlines())
    assert float(row["weight_sparsity"]) == 0
    assert "| weight_sparsity | Fraction of the weights that are 0 |" in (folder / "results" / "README.md").read_text(
        encoding="utf-8"
    )
    assert "sparsity of the weights" in (folder / "results" / "report.html").read_text(encoding="utf-8")


COMMAND = """
import sys
import main, run_report, run_sparsity, run_sweep

main.main(sys.argv[1:])
assert run_sparsity.main(["--results_dir=results", "--samples=20"]) == 0
assert run_report.main(["--results_dir=results", "--resamples=100"]) == 0
"""


def test_a_measuring_command_has_its_picture_column_and_place_in_the_report(tmp_path):
    measure, picture, command, plot_import, name, column, title = blocks("A measuring command")
    columns = '"class_similarity_samples": "Number of images on which class similarity was measured",\n'
    last_title = '    "Class Similarity": "class similarity",\n'
    old_names = f"MEASUREMENTS = {MEASUREMENTS!r}\n".replace("'", '"')
    edits = {
        "normstudy/plots/__init__.py": [("\n__all__ = ", f"\n{plot_import}\n__all__ = ")],
        "normstudy/storage/run_directory.py": [(old_names.strip(), name.strip())],
        "normstudy/storage/results_columns.py": [(columns, f"{columns}{column}")],
        "normstudy/report/tables.py": [(last_title, f"{last_title}{title}")],
    }
    folder = copy_of_the_program(tmp_path, edits)
    (folder / "normstudy" / "measures" / "sparsity.py").write_text(measure, encoding="utf-8")
    (folder / "normstudy" / "plots" / "sparsity.py").write_text(picture, encoding="utf-8")
    (folder / "run_sparsity.py").write_text(command, encoding="utf-8")
    call(folder, "-c", COMMAND, *SMALL, NARROW)
    [run] = (folder / "results").glob("vgg_*")
    assert (run / "sparsity.png").exists()
    [row] = csv.DictReader((folder / "results" / "results.csv").read_text(encoding="utf-8").splitlines())
    assert 0 < float(row["sparsity"]) < 1
    assert "sparsity of the features" in (folder / "results" / "report.html").read_text(encoding="utf-8")
    sweep = call(
        folder, "run_sweep.py", "--preset=quick", "--measure=sparsity", "--sparsity_flags=--samples=9", "--dry_run"
    )
    assert "3 new" in sweep
