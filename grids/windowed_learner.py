"""Training of a long clip: window after window, so that memory does not grow with the clip."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.camera import Surface
from alignment.pins import Pin
from command_line import UserError
from config import Config
from grids.learner import STRIDES, GridLearner
from grids.model import GridModel, Spacing
from grids.mosaic import Mosaic, compare_common_frames, fit_mosaic, register_window
from grids.unwrap import measure_coverage
from grids.window_start import ClipMotion, align_clip, describe_layers, start_window
from grids.windows import WINDOWS_FOLDER, Span, WindowedModel, WindowFiles, WindowLayer, plan_windows
from implicit_neural_networks import Model, read_checkpoint, visibility, write_checkpoint
from media import Pixels
from media.clip import evenly_spaced_indices
from unwrap_utils import Video

COVERAGE_FRAMES, COVERAGE_STRIDE = 12, 4  # Frames of a window, and texels, by which is measured what it shows.


class WindowedLearner:
    """A WindowedModel with the learner of one window at a time; see `training.learner.Learner` for the interface.

    The first steps start one window each. Then every window is trained for an equal share of the run, one after the
    other. Windows that are not trained rest in files.
    """

    def __init__(self, config: Config, video: Video, generator: torch.Generator):
        """video: on the CPU. The windows are trained on the device of the generator."""
        self.config, self.video, self.generator = config, video, generator
        self.device = generator.device
        self.spans = plan_windows(video.size[0], config.window_frames)
        self.frames_used: float = 0
        self.parts_done = 0  # grows whenever a window is stored, because then the run should be saved
        self.waiting = list(range(len(self.spans)))  # windows that are still to be trained
        self.window_layers: list[list[WindowLayer]] = []  # of the windows that are started
        self.number: int | None = None  # of the window that is in memory
        self.begun_at = 0.0  # progress at which training of this window began
        self.assembled: WindowedModel | None = None
        self.learner: GridLearner
        self.motion: ClipMotion
        self.folder: Path
        self.show_start: Callable[[Model, list[Pixels]], None] = lambda model, pictures: None

    def initialize(self, show_start: Callable[[Model, list[Pixels]], None], folder: Path) -> None:
        """Align the layers of the whole clip. show_start is called when all windows are started."""
        self.show_start, self.folder = show_start, folder / WINDOWS_FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        print(f"a clip of {self.video.size[0]} frames, trained in {len(self.spans)} windows", flush=True)
        self.motion = align_clip(self.video)
        self.start_next_window()

    @property
    def model(self) -> Model:
        """The model of the clip as it was last put together; before that, the model of the window in memory."""
        return self.assembled or self.learner.model

    # windows

    @property
    def is_whole(self) -> bool:
        """Whether all windows are started and put together."""
        return self.assembled is not None

    @property
    def is_started(self) -> bool:
        """Whether all windows are started."""
        return len(self.window_layers) == len(self.spans)

    def path(self, number: int) -> Path:
        """Return the file of a window."""
        return self.folder / f"frames_{self.spans[number].first:06d}"

    def make_learner(self, number: int) -> GridLearner:
        """Return a learner for the frames of a window, without a model."""
        span = self.spans[number]
        return GridLearner(self.config, self.video.part(span.first, span.end).to(self.device), self.generator)

    def start_next_window(self) -> None:
        """Start the next window, which then is in memory."""
        self.store_window()
        number = len(self.window_layers)
        span = self.spans[number]
        motion, spacing = self.motion.part(span), Spacing.from_config(self.config)
        print(f"window {number + 1} of {len(self.spans)}, frames {span.first} to {span.end - 1}", flush=True)
        video = self.video.part(span.first, span.end)
        model, probability = start_window(video, motion, spacing, self.config.mask_quality, STRIDES[0])
        self.number, self.learner = number, self.make_learner(number)
        self.window_layers.append(describe_layers(model, motion))
        self.learner.set_model(model, probability, STRIDES[0])

    def load_window(self, number: int) -> None:
        """Take a window into memory, unless it is there."""
        if self.number == number:
            return
        self.store_window()
        learner, path = self.make_learner(number), self.path(number)
        learner.restore(read_checkpoint(path, self.device), path)
        self.number, self.learner = number, learner

    def store_window(self, is_finished: bool = False) -> None:
        """Write the window in memory to its file, and forget it. A finished one needs no state of its optimizer."""
        if self.number is None:
            return
        checkpoint = self.learner.checkpoint() | {"coverage": measure_window_coverage(self.learner)}
        if is_finished:
            checkpoint["grid_optimizer"] = {}
        write_checkpoint(self.path(self.number), checkpoint)
        self.number = None
        self.parts_done += 1
        if self.assembled:
            self.assembled.windows.forget()
        self.video.release_memory()

    def finish_window(self) -> None:
        """Finish the window in memory."""
        assert self.number is not None
        self.learner.finish()
        self.waiting.remove(self.number)
        self.store_window(is_finished=True)

    def assemble(self) -> WindowedModel:
        """Put the atlases of the clip together from those of all windows, which are in their files."""
        paths = [self.path(number) for number in range(len(self.spans))]
        files, device = WindowFiles(paths, self.device), torch.device("cpu")
        mosaics = [Mosaic(*fit_mosaic(layers)) for layers in zip(*self.window_layers, strict=True)]
        earlier: GridModel | None = None
        for number, path in enumerate(paths):
            checkpoint = read_checkpoint(path)
            model = GridModel.from_checkpoint(checkpoint, path).to(device)
            for layer, mosaic in enumerate(mosaics):
                color = model.atlases[layer].detach()[0].permute(1, 2, 0).numpy()
                coverage = checkpoint["coverage"][layer].float().numpy()
                window_layer = replace(self.window_layers[number][layer], correction=torch.zeros(1, 2, 1, 1))
                if earlier is not None:
                    before, spans = self.window_layers[number - 1][layer], (self.spans[number - 1], self.spans[number])
                    common = compare_common_frames(earlier, before, model, window_layer, spans, layer)
                    window_layer = register_window(mosaic, color, coverage, window_layer, common)
                mosaic.add(color, coverage, window_layer)
                self.window_layers[number][layer] = window_layer
            earlier = model
        atlases = [mosaic.finish() for mosaic in mosaics]
        return WindowedModel(self.video.size, self.spans, self.window_layers, atlases, files)

    # the interface of learners

    def step(self, iteration: int, progress: float) -> dict[str, Tensor]:
        """Start a window, or train one, and return the weighted terms; progress is that of the whole run."""
        if not self.is_started:
            self.start_next_window()
            return self.train_window(iteration, 0.0)
        if self.assembled is None:
            self.store_window()
            self.assembled = self.assemble()
            self.show_start(self.assembled, self.assembled.atlas_images())
        if not self.waiting:  # The run is continued after it was finished.
            self.waiting = list(range(len(self.spans)))
        share = (progress - self.begun_at) / ((1 - self.begun_at) / len(self.waiting)) if self.begun_at < 1 else 1.0
        if self.number == self.waiting[0] and share >= 1 and len(self.waiting) > 1:
            self.finish_window()
        if self.number != self.waiting[0]:
            self.load_window(self.waiting[0])
            self.begun_at, share = progress, 0.0
        return self.train_window(iteration, min(share, 1.0))

    def train_window(self, iteration: int, progress: float) -> dict[str, Tensor]:
        """Do one step of the window in memory; progress is that of its own training."""
        before = self.learner.frames_used
        terms = self.learner.step(iteration, progress)
        self.frames_used += self.learner.frames_used - before
        return terms

    def finish(self) -> None:
        """Finish all windows that are not finished, and put the clip's atlases together."""
        while not self.is_started:
            self.start_next_window()
        for number in list(self.waiting):
            self.load_window(number)
            self.finish_window()
        self.store_window()
        self.assembled = self.assemble()

    def apply_strokes(self) -> None:
        """Correct the opacity of the windows that have strokes; these windows are then trained."""
        with_strokes = [number for number, span in enumerate(self.spans) if any(t in span for t in self.video.strokes)]
        for number in with_strokes:
            self.load_window(number)
            self.learner.apply_strokes()
            self.window_layers[number] = describe_layers(self.learner.model, self.motion.part(self.spans[number]))
            self.store_window()
        self.waiting = sorted({*self.waiting, *with_strokes})
        self.assembled = self.assemble()

    def mend(self, pins: list[Pin], rigidity: dict[int, float]) -> None:
        """Raise UserError, because pins and dials change one model of all frames."""
        raise UserError(
            f"--pins and --rigidity mend a clip that was trained as a whole; this run has {len(self.spans)} windows. "
            "Train a part of the clip, or set window_frames to the number of its frames"
        )

    def checkpoint(self) -> dict[str, Any]:
        """Return the state of the run. The windows have files of their own, except the one that is in memory."""
        background = self.motion.background
        state: dict[str, Any] = {
            "spans": [[span.first, span.end] for span in self.spans],
            "waiting": list(self.waiting),
            "number": self.number,
            "begun_at": self.begun_at,
            "transforms": torch.from_numpy(self.motion.transforms),
            "background": torch.from_numpy(background.transforms),
            "is_cylinder": background.is_cylinder,
            "upright": None if background.upright is None else torch.from_numpy(background.upright),
            "started": len(self.window_layers),
        }
        if self.number is not None:
            state["window"] = self.learner.checkpoint()
        return {"windowed_learner": state} | (self.assembled.checkpoint() if self.assembled else {})

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take the state of the run from a checkpoint. Raises UserError if it is that of another clip or incomplete."""
        self.folder = path.parent / WINDOWS_FOLDER
        try:
            state = checkpoint["windowed_learner"]
            spans = [Span(*span) for span in state["spans"]]
            upright = None if state["upright"] is None else state["upright"].cpu().numpy()
            surface = Surface(state["background"].cpu().numpy(), state["is_cylinder"], upright)
            self.motion = ClipMotion(state["transforms"].cpu().numpy(), surface)
            self.waiting, self.begun_at = list(state["waiting"]), float(state["begun_at"])
            started = int(state["started"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path}: has no usable state of the training of a long clip; train again") from None
        if spans != self.spans:
            raise UserError(f"{path}: was begun with other windows, or on another clip; use its own config and frames")
        if state["number"] is not None:
            learner = self.make_learner(state["number"])
            learner.restore(state["window"], path)
            self.number, self.learner = state["number"], learner
        for number in range(started):
            model = self.learner.model if number == self.number else self.read_model(number)
            self.window_layers.append(describe_layers(model, self.motion.part(self.spans[number])))
        if "windows" in checkpoint:
            self.assembled = WindowedModel.from_checkpoint(checkpoint, path, self.device)

    def read_model(self, number: int) -> GridModel:
        """Return the model in the file of a window."""
        path = self.path(number)
        return GridModel.from_checkpoint(read_checkpoint(path, "cpu"), path)


@torch.no_grad()
def measure_window_coverage(learner: GridLearner) -> list[Tensor]:
    """Return how much a window shows of each layer's atlas, see `unwrap.measure_coverage`, on the CPU."""
    model, opacity = learner.model, learner.opacity()
    frames = evenly_spaced_indices(model.shape.size[0], COVERAGE_FRAMES)

    def measure(layer: int) -> Tensor:
        coverage = measure_coverage(model, layer, lambda t: visibility(opacity[:, t])[layer], COVERAGE_STRIDE, frames)
        return coverage.cpu() * (model.shape.size[0] / len(frames))

    return [measure(layer) for layer in range(len(model.layers))]
