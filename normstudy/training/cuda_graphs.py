"""CUDA graphs: work that is recorded once and then launched as a whole, without the time to launch each kernel."""

import sys
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from normstudy.kernels import is_out_of_memory

CALLS_BEFORE_CAPTURE = 3  # libraries choose their kernels and allocate their buffers in these
T = TypeVar("T")


class Graphs:
    """The CUDA graphs of one run. They share a stream and their memory, so each result is valid until the next replay.

    has_failed: whether something could not be captured; then nothing is captured any more.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.has_failed = False

    def on_side_stream(self, function: Callable[[], T]) -> T:
        """Run function() on the stream of the graphs, where work has to run before it is captured."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def capture(self, function: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T] | None:
        """Record function() without computing it; return (graph, its results), which each replay fills.

        If it cannot be captured, print why and return None. Any other error is raised.
        """
        current = torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                results = function()
        except RuntimeError as error:
            if is_out_of_memory(error) or "captur" not in str(error):
                raise
            self.has_failed = True
            reason = str(error).partition("\n")[0]
            print(f"--cuda_graph: could not be captured ({reason}); continuing without it", file=sys.stderr)
            return None
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves the process on the side stream
        return graph, results


class Graphed(Generic[T]):
    """A function of no arguments that runs a few times as it is, and then as a CUDA graph.

    It reads its inputs from tensors that the caller overwrites, and its results are overwritten by the next call.
    """

    def __init__(self, function: Callable[[], T], graphs: Graphs) -> None:
        self.function, self.graphs = function, graphs
        self.calls = 0
        self.captured: tuple[torch.cuda.CUDAGraph, T] | None = None

    def __call__(self) -> T:
        self.calls += 1
        if self.captured is None and self.calls > CALLS_BEFORE_CAPTURE and not self.graphs.has_failed:
            self.captured = self.graphs.capture(self.function)
        if self.captured is None:
            return self.graphs.on_side_stream(self.function)
        graph, results = self.captured
        graph.replay()
        return results
