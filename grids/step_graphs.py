"""Steps of training on a GPU, recorded once as a CUDA graph and replayed.

A step of the grids is about 1,800 small operations. A GPU does them in some milliseconds, but Python and PyTorch need
ten times as long to ask for them. A graph asks for all of them at once. Everything in which steps differ is in the
tensors of the batch, which are overwritten before each replay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from command_line import warn
from grids.loss import Batch

Step = Callable[[Batch], dict[str, Tensor]]


@dataclass
class Recording:
    """A recorded step."""

    graph: "torch.cuda.CUDAGraph"
    terms: dict[str, Tensor]  # The graph overwrites them in each replay.


class StepGraphs:
    """The recorded steps of one stage of training."""

    has_failed = False  # in any stage of any clip of this process

    def __init__(self, device: torch.device, is_used: bool):
        """On devices other than CUDA GPUs, and where graphs are not used, steps are done one operation at a time."""
        self.device, self.is_used = device, is_used and device.type == "cuda"
        self.forget()

    def forget(self) -> None:
        """Forget all recordings, because tensors that they read or change are replaced."""
        self.batches: dict[int, Batch] = {}  # the tensors that graphs read, by the number of frames of the batch
        self.recordings: dict[int, Recording] = {}  # by the same
        self.pool: Any = None  # The graphs share their memory, because one runs after the other.

    def run(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Do a step with a batch, which is on the CPU. Returns what the step returns, the weighted terms.

        The first step with a number of frames is an ordinary one, which also prepares what must not be recorded, such
        as the state of the optimizer. The second one is recorded. If that fails, a warning says so once, and all steps
        are ordinary ones.
        """
        frames = len(batch.t)
        if not self.is_used or StepGraphs.has_failed:
            return step(batch.to(self.device))
        if frames not in self.batches:
            self.batches[frames] = batch.to(self.device)
            return step(self.batches[frames])
        for fixed, values in zip(self.batches[frames].tensors(), batch.tensors(), strict=True):
            fixed.copy_(values, non_blocking=True)
        if frames not in self.recordings:
            try:
                self.recordings[frames] = self.record(self.batches[frames], step)
            except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built with CUDA.
                StepGraphs.has_failed = True
                self.forget()
                cause = str(error.__context__ or error).partition("\n")[0]
                warn(f"steps cannot be recorded as a CUDA graph, so training is slower ({cause})")
                return step(batch.to(self.device))
        recording = self.recordings[frames]
        recording.graph.replay()
        return {name: value.clone() for name, value in recording.terms.items()}

    def record(self, batch: Batch, step: Step) -> Recording:
        """Record a step with a batch on the device. Recording does not do the step."""
        stream = torch.cuda.current_stream(self.device)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do with the GPU meanwhile is not recorded and does no harm.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                terms = step(batch)
        finally:  # After an error in it, PyTorch stays on the stream that it recorded.
            torch.cuda.set_stream(stream)
        return Recording(graph, terms)
