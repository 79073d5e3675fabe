"""The interface of a learner: what the training loop needs of a representation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from implicit_neural_networks import Model
from media import Pixels

ShowStart = Callable[[Model, list[Pixels]], None]
"""Called with a model that has had no training yet, and the picture (h, w, 3) of each layer's atlas."""


class Learner(Protocol):
    """A model with its optimizer and its batches. `initialize` or `restore` comes before the first `step`.

    Learners are `training.networks.NetworkLearner` and `grids.learner.GridLearner`; `training.loop.LEARNERS` names them.
    """

    frames_used: float  # frames that all batches so far showed, counted by their pixels

    @property
    def model(self) -> Model:
        """The model that is trained."""
        ...

    def initialize(self, show_start: ShowStart) -> None:
        """Give the model its start. Calls show_start as soon as there is something to look at, or never."""
        ...

    def step(self, iteration: int, progress: float) -> dict[str, Tensor]:
        """Do one iteration; progress is how much of the run is done, 0 to 1. Returns the weighted terms, detached."""
        ...

    def finish(self) -> None:
        """Bring the model to full resolution at the end of a run, however early that is."""
        ...

    def checkpoint(self) -> dict[str, Any]:
        """The model, and everything else that decides the next step."""
        ...

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take everything that decides the next step from a checkpoint. Raises UserError."""
        ...
