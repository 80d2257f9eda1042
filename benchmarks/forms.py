"""Compare training steps with each faster form of a kernel and with the form that it replaces.

    python benchmarks/forms.py [KERNEL …]

The steps take turns in one process. A ratio is the time of the step without the form over the time with it, so 1.1 is
a gain of 10 %. Each line uses the network, norm and precision in which the form matters most.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bench import SMALL_VIT, TrainingStep
from benchmarks.common import DEVICE, ROOT, alternated, compared, machine, machine_name
from normstudy.kernels import Form, is_bf16_emulated, keep_freed_memory, use_form
from normstudy.storage import write_json

REPEATS = 5
WORTH = 1.1  # minimum ratio for a form to stay
VIT = (*SMALL_VIT, "--batch_size=64")


@dataclass(frozen=True)
class Case:
    """A kernel, the form that its faster form replaces, and a step in which it matters, with probes on or off."""

    kernel: str
    instead: Form
    flags: tuple[str, ...]
    precision: str = "fp32"
    has_probes: bool = False

    def name(self) -> str:
        probes = ", probes on" if self.has_probes else ""
        return f"{self.kernel} against {self.instead}: {' '.join(self.flags)} {self.precision}{probes}"


def vgg(norm_type: str) -> tuple[str, ...]:
    return "--arch=vgg", f"--norm_type={norm_type}"


CASES = (
    Case("convolution", "plain", vgg("BatchNorm"), "bf16"),
    Case("batch_norm", "plain", vgg("BatchNorm")),
    Case("batch_norm", "plain", vgg("BatchNorm"), "bf16"),
    Case("group_norm", "device", vgg("GroupNorm")),
    Case("group_norm", "device", vgg("InstanceNorm")),
    Case("group_norm", "device", vgg("LayerNorm"), "bf16"),
    Case("map_moments", "plain", vgg("RMSNorm")),
    Case("map_moments", "plain", vgg("InstanceNorm"), "bf16"),
    Case("attention", "device", VIT, "bf16"),
    Case("channel_variance", "plain", (*vgg("BatchNorm"), "--batch_size=64"), has_probes=True),
    Case("channel_variance", "plain", vgg("BatchNorm"), "bf16", has_probes=True),
)


def measure(case: Case) -> dict[str, Any]:
    """Return the median seconds of a step with the form, and the figures of the step without it."""
    step = TrainingStep([*case.flags, f"--precision={case.precision}"], case.has_probes)

    def step_without() -> None:
        with use_form(case.instead, case.kernel):
            step()

    table = compared(alternated({"with": step, "without": step_without}, REPEATS, warm_up=2), "with")
    return {"seconds": table["with"]["median_seconds"], **table["without"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", help="Kernels of normstudy/kernels/switch.py to compare (default: all)")
    wanted = parser.parse_args().kernels
    keep_freed_memory()
    results: dict[str, object] = {"machine": machine()}
    for case in CASES:
        if (wanted and case.kernel not in wanted) or (case.precision == "bf16" and is_bf16_emulated(DEVICE)):
            continue
        found = measure(case)
        results[case.name()] = found
        verdict = "" if found["median_ratio"] >= WORTH else "  below 1.1"
        print(f"{found['median_ratio']:.2f}  {case.name()}  {found['ratios']}{verdict}", flush=True)
    path = ROOT / "benchmarks" / "results" / f"forms-{machine_name()}.json"
    write_json(path, results)
    print(path)


if __name__ == "__main__":
    main()
