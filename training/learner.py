"""The interface of a learner: what the training loop needs of a representation."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from alignment.pins import Pin
from implicit_neural_networks import Model
from media import Pixels

ShowStart = Callable[[Model, list[Pixels]], None]
"""Type of a function that shows a model before its training, with the image (h, w, 3) of each layer's atlas."""


class Learner(Protocol):
    """A model with its optimizer and its batches. Call `initialize` or `restore` before the first `step`.

    There are three: `training.networks.NetworkLearner`, `grids.learner.GridLearner`, and for long clips
    `grids.windowed_learner.WindowedLearner`; `training.loop.make_learner` chooses.
    """

    parts_done: int  # grows when a part of the training is done that should be saved
    frames_used: float  # frames in all batches so far; networks count their pixels as parts of a frame

    @property
    def seconds_to_finish(self) -> float:
        """About how many seconds of a time budget `finish` needs; only read for runs with a time budget."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether the model holds all frames; that of a long clip does so when all its windows are started."""
        ...

    @property
    def model(self) -> Model:
        """The model that is trained."""
        ...

    def initialize(self, show_start: ShowStart, folder: Path) -> None:
        """Set the model to the values from which training starts.

        A learner whose start takes long calls show_start as soon as its model can be shown. Other learners never
        call it. folder: of the run, for learners that keep files there.
        """
        ...

    @property
    def frame_count(self) -> int:
        """Number of frames that this run trains."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return all tensors that training changes and that are in memory."""
        ...

    def step(self, iteration: int, progress: float) -> dict[str, Tensor]:
        """Do one iteration and return the weighted loss terms, detached.

        progress: how much of the run is done, 0 to 1.
        """
        ...

    def apply_strokes(self) -> None:
        """Correct the opacity of a trained model by the strokes of the video. Raises UserError if it cannot be done."""
        ...

    def mend(self, pins: list[Pin] | None, rigidity: dict[int, float]) -> None:
        """Change the mappings: some layers become stiffer or softer, and all places of a pin become one place.

        pins: they replace those of the run, which hold until then; None keeps those. rigidity: factors by the index of
        the layer. Raises UserError if it cannot be done.
        """
        ...

    def finish(self) -> None:
        """Bring the model to full resolution at the end of a run, however early the run ends."""
        ...

    def release(self) -> None:
        """Give back the memory of what only further steps need. After it, nothing but the model can be used."""
        ...

    def checkpoint(self) -> dict[str, Any]:
        """Return the model and everything else of the learner that decides the next step."""
        ...

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Set everything that decides the next step from a checkpoint, which was read from `path`. Raises UserError."""
        ...
