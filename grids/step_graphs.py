"""Steps of training on a GPU, recorded once as a CUDA graph and replayed.

A step of the grids is about a thousand small operations. A GPU does them in some milliseconds, but Python and PyTorch
need ten times as long to ask for them. A graph asks for all of them at once. Everything in which steps differ is in the
tensors of the batch, which are overwritten before each replay.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from command_line import warn
from grids.loss import Batch

Step = Callable[[Batch], dict[str, Tensor]]


@dataclass
class Recording:
    """A step with batches of one shape."""

    batch: Batch  # on the device; the graph reads its tensors
    graph: "torch.cuda.CUDAGraph | None" = None
    terms: dict[str, Tensor] = field(default_factory=dict)  # The graph overwrites them in each replay.


class StepGraphs:
    """The recorded steps of one stage of training."""

    def __init__(self, device: torch.device, is_used: bool):
        """On devices other than CUDA GPUs, and where graphs are not used, steps are done one operation at a time."""
        self.device, self.is_used = device, is_used and device.type == "cuda"
        self.recordings: dict[int, Recording] = {}  # by the number of frames of the batch
        self.forget()

    def forget(self) -> None:
        """Forget all recordings, because tensors that they change are replaced, or are larger from now on."""
        self.recordings = {}
        self.pool = torch.cuda.graph_pool_handle() if self.is_used else None

    def run(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Do a step with a batch, which is on the CPU. Returns what the step returns, the weighted terms.

        The first step with a number of frames is an ordinary one, which also prepares what must not be recorded, such
        as the state of the optimizer. The second one is recorded. If that fails, a warning says so once, and all steps
        are ordinary ones.
        """
        if not self.is_used:
            return step(batch.to(self.device))
        recording = self.recordings.get(len(batch.t))
        if recording is None:
            recording = self.recordings[len(batch.t)] = Recording(batch.to(self.device))
            return step(recording.batch)
        for fixed, values in zip(recording.batch.tensors(), batch.tensors(), strict=True):
            fixed.copy_(values, non_blocking=True)
        if recording.graph is None:
            try:
                self.record(recording, step)
            except RuntimeError as error:
                warn(f"steps cannot be recorded as a CUDA graph and are slower ({str(error).splitlines()[0]})")
                self.is_used = False
                self.forget()
                return step(batch.to(self.device))
        assert recording.graph is not None
        recording.graph.replay()
        return {name: value.clone() for name, value in recording.terms.items()}

    def record(self, recording: Recording, step: Step) -> None:
        """Record a step with the batch of a recording. Recording does not do the step."""
        graph = torch.cuda.CUDAGraph()
        # The graphs share their memory, because one runs after the other. Other threads, such as that of a progress
        # bar, may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            recording.terms = step(recording.batch)
        recording.graph = graph
