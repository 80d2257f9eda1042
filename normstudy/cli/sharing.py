"""How many processes of a sweep share the memory of this machine and of each GPU."""

import os

ON_MACHINE, ON_GPU = "NORMSTUDY_PROCESSES_ON_MACHINE", "NORMSTUDY_PROCESSES_ON_GPU"  # environment variables


def sharing_environment(on_machine: int, on_gpu: int) -> dict[str, str]:
    """Return the environment variables with these two numbers, for the processes of a sweep."""
    return {ON_MACHINE: str(on_machine), ON_GPU: str(on_gpu)}


def processes_sharing(device_type: str) -> int:
    """Return how many processes share a device, with this one; 1 if it was not started by a sweep."""
    return int(os.environ.get(ON_GPU if device_type == "cuda" else ON_MACHINE, "1"))
