"""The Markdown page of a report of gpu.py."""

from collections.abc import Iterable, Sequence
from typing import Any

GOALS = {("vgg", "bf16"): 80_000, ("resnet-56", "bf16"): 20_000, ("vit", "bf16"): 6_000}  # images/s on an H100

# Test accuracies of the original study in %: 9,000 test images of CIFAR-10, momentum and weight decay, batch 256.
PUBLISHED = {
    "vgg/BatchNorm": 83.83,
    "vgg/Plain": 78.49,
    "vgg/LayerNorm": 83.17,
    "vgg/InstanceNorm": 79.70,
    "vgg/GroupNorm": 83.27,
    "vgg/FilterResponseNorm": 82.00,
    "vgg/EvoNormSO": 82.73,
    "vgg/EvoNormBO": 83.99,
    "vgg/VarianceNorm": 84.37,
    "resnet-56/BatchNorm": 86.77,
}


def markdown(report: dict[str, Any]) -> str:
    """Return the page: machine, tests, speed, Hessian products and training."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [f"# {machine.get('gpu', machine['processor'])}", f"{machine['processor']}; {versions}"]
    if "tests" in report:
        tests = report["tests"]
        parts += ["## Tests marked `cuda`", tests["summary"] or f"code {tests['code']}"]
        parts += ["\n".join(f"- `{line}`" for line in tests["failures"])] if tests["failures"] else []
    if report.get("speed"):
        parts += ["## Images per second of training steps, batch 256", _speed(report["speed"])]
    if report.get("hessian"):
        rows = [
            (row["arch"], row["contender"], f"{row['seconds']:.4f}", f"{row['ratio']:.2f}", f"{row['error']:.1e}")
            for row in report["hessian"]
        ]
        title = ("network", "product of", "seconds", "ratio to ours, graphs kept", "relative error against float64")
        parts += [f"## Hessian products, {report['hessian'][0]['images']} images, float32", _table(title, rows)]
    if report.get("training"):
        parts += ["## Full training, bf16, probes at every tenth step", _training(report["training"])]
    parts += [f"{name.removesuffix('_error')} ended with {text}" for name, text in report.items() if "_error" in name]
    return "\n\n".join(parts) + "\n"


def _table(title: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [title, ["---"] * len(title), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _speed(rows: list[dict[str, Any]]) -> str:
    """Return a table with one line per network, norm and precision, and one column per graph and probes."""
    found: dict[tuple[str, str, str], dict[tuple[bool, bool], dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["arch"], row["norm"], row["precision"]), {})[row["graph"], row["probes"]] = row
    title = ["network", "norm", "precision", "graph", "graph, probes", "no graph", "no graph, probes", "probes cost"]
    title += ["relative to Plain", "GB", "goal"]
    lines = []
    for (arch, norm, precision), cells in sorted(found.items()):
        fast, probed = cells.get((True, False), {}), cells.get((True, True), {})
        plain = found.get((arch, "Plain", precision), {}).get((True, False), {})
        lines.append(
            [arch, norm, precision]
            + [_count(cells.get(key, {})) for key in ((True, False), (True, True), (False, False), (False, True))]
            + [_ratio(fast, probed, 1), _ratio(plain, fast), str(fast.get("gigabytes", "")), _goal(arch, precision)]
        )
    return _table(title, lines)


def _count(row: dict[str, Any]) -> str:
    return row["error"][:60] if "error" in row else f"{row['images_per_second']:,}" if row else ""


def _ratio(slow: dict[str, Any], fast: dict[str, Any], less: int = 0) -> str:
    """Return how many times as long a step of `fast` takes as one of `slow`, or by which fraction more (less=1)."""
    try:
        ratio = slow["images_per_second"] / fast["images_per_second"]
    except KeyError:
        return ""
    return f"{ratio - less:+.0%}" if less else f"{ratio:.2f}"


def _goal(arch: str, precision: str) -> str:
    return f"{GOALS[arch, precision]:,}" if (arch, precision) in GOALS else ""


def _training(rows: list[dict[str, Any]]) -> str:
    title = ("run", "epochs", "test accuracy", "original study", "train accuracy", "images/s", "seconds", "status")
    lines = [
        [
            row["run"],
            str(row["epochs"]),
            f"{row['test_accuracy'][-1]:.2%}" if row.get("test_accuracy") else "",
            f"{PUBLISHED[row['run']]:.2f}%" if row["run"] in PUBLISHED else "",
            f"{row['train_accuracy']:.2%}" if row.get("train_accuracy") is not None else "",
            f"{row['images_per_second']:,}" if "images_per_second" in row else "",
            f"{row['seconds']:.0f}",
            row["status"],
        ]
        for row in rows
    ]
    return _table(title, lines)
