"""Training of a long clip: window after window, so that memory does not grow with the clip."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignment.camera import Surface
from alignment.pins import Pin
from command_line import UserError
from config import Config
from grids.learner import STRIDES, GridLearner
from grids.model import GridModel
from grids.mosaic import SEEN, Mosaic, compare_common_frames, register_window
from grids.shape import Spacing
from grids.unwrap import measure_coverage
from grids.window_start import ClipMotion, Extension, align_clip, continue_motion, describe_layers, start_window
from grids.windows import (
    OVERLAP,
    WINDOWS_FOLDER,
    LayerAtlas,
    Placement,
    Span,
    WindowedModel,
    WindowFiles,
    WindowLayer,
    plan_windows,
)
from implicit_neural_networks import Model, visibility
from media import Pixels
from media.checkpoints import read_checkpoint, write_checkpoint
from media.clip import evenly_spaced_indices
from unwrap_utils import Video

CPU = torch.device("cpu")
COVERAGE_FRAMES, COVERAGE_STRIDE = 32, 4  # Frames of a window, and texels, by which is measured what it shows.


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
        # By window and layer, how much the window shows of its atlas when it was last stored.
        self.coverages: dict[int, list[Tensor]] = {}
        self.fixed = 0  # Number of the first windows that are those of an earlier run, which is extended.
        self.base: list[LayerAtlas] | None = None  # the atlases of that run
        self.number: int | None = None  # of the window that is in memory
        # Progress at which training of this window began, or went on after the run was resumed (None: it has not yet),
        # and the share of its training that was done by then.
        self.begun_at: float | None = None
        self.share_done = 0.0
        self.share_now = 0.0  # the share at the last step
        self.seconds_per_window: float | None = None  # about what it takes to finish a window
        self.files: list[str] = []  # names of the windows' files
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

    def extend(self, extension: Extension, folder: Path) -> None:
        """Begin with the windows of an earlier run, and add windows for frames that follow it.

        folder: of the new run; files of the earlier windows are copied there.
        """
        self.folder = folder / WINDOWS_FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self.fixed, self.base = len(extension.spans), extension.atlases
        first = max(0, extension.spans[-1].end - OVERLAP)
        added = plan_windows(self.video.size[0] - first, self.config.window_frames)
        self.spans = [*extension.spans, *(Span(span.first + first, span.end + first) for span in added)]
        self.waiting = list(range(self.fixed, len(self.spans)))
        self.window_layers = [list(layers) for layers in extension.layers]
        for number, checkpoint in enumerate(extension.checkpoints()):
            self.name_file(number)
            write_checkpoint(self.path(number), checkpoint)
        self.motion = continue_motion(self.video, first, self.read_model(self.fixed - 1), extension)
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
        return self.folder / self.files[number]

    def name_file(self, number: int) -> None:
        """Give a window a new file; the checkpoint still names the old one until the run is saved."""
        name, taken = f"window_{number + 1:03d}", {path.name for path in self.folder.iterdir()}
        names = [name, *(f"{name}_{copy}" for copy in range(2, len(taken) + 3))]
        free = next(each for each in names if each not in taken)
        self.files[number : number + 1] = [free]

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
        self.name_file(number)
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
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.learner.model.parameters()):
            raise UserError(f"{self.path(self.number)}: the window became NaN; lower grid_rate_* in the config")
        checkpoint = self.learner.checkpoint()
        self.coverages[self.number] = measure_window_coverage(self.learner.model, self.learner.opacity())
        if is_finished:
            checkpoint["grid_optimizer"] = {}
        write_checkpoint(self.path(self.number), checkpoint)
        self.number = None
        self.parts_done += 1
        if self.assembled:
            self.assembled.windows.forget()
        self.video.release_memory()
        del self.learner

    def finish_window(self) -> None:
        """Finish the window in memory."""
        assert self.number is not None
        self.learner.finish()
        self.waiting.remove(self.number)
        self.store_window(is_finished=True)

    def assemble(self) -> WindowedModel:
        """Put the atlases of the clip together from those of all windows, which are in their files."""
        paths = [self.path(number) for number in range(len(self.spans))]
        fixed, mosaics = self.fixed, self.make_mosaics()
        earlier = self.read_model(fixed - 1) if fixed else None
        for number in range(fixed, len(self.spans)):
            model = self.read_model(number)
            for layer, mosaic in enumerate(mosaics):
                color = model.atlases[layer].detach()[0].permute(1, 2, 0).numpy()
                coverage = self.coverages[number][layer].numpy()
                window_layer = replace(
                    self.window_layers[number][layer],
                    correction=torch.zeros(1, 2, 1, 1),
                    is_seen=bool((coverage > SEEN).any()),
                )
                if earlier is not None:
                    before, spans = self.window_layers[number - 1][layer], (self.spans[number - 1], self.spans[number])
                    common = compare_common_frames(earlier, before, model, window_layer, spans, layer)
                    window_layer = register_window(mosaic, color, coverage, window_layer, common)
                mosaic.add(color, coverage, window_layer)
                self.window_layers[number][layer] = window_layer
            earlier = model
        atlases = [mosaic.finish() for mosaic in mosaics]
        former_atlases = self.assembled.atlases if self.assembled else self.base
        if former_atlases is not None:
            atlases = [keep_units(atlas, former) for atlas, former in zip(atlases, former_atlases, strict=True)]
        files = WindowFiles(paths, self.device)
        return WindowedModel(self.video.size, self.spans, self.window_layers, atlases, files)

    def make_mosaics(self) -> list[Mosaic]:
        """Return for each layer a mosaic without the windows of this training."""
        new = range(self.fixed, len(self.spans))
        mosaics = []
        for layer in range(len(self.window_layers[0])):
            windows = [self.window_layers[number][layer] for number in new]
            seen = [self.coverages[number][layer].numpy() for number in new]
            mosaics.append(Mosaic.around(None if self.base is None else self.base[layer], windows, seen))
        return mosaics

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
            self.waiting = list(range(self.fixed, len(self.spans)))
        if self.number == self.waiting[0] and self.share_at(progress) >= 1 and len(self.waiting) > 1:
            self.finish_window()
        if self.number != self.waiting[0]:
            self.load_window(self.waiting[0])
            # The next step says how far the run is: a window that was finished in this one has taken some time.
            self.begun_at, self.share_done = None, 0.0
            return self.train_window(iteration, 0.0)
        return self.train_window(iteration, self.share_at(progress))

    def share_at(self, progress: float) -> float:
        """Return how much of the training of the window in memory is done, 0 to 1.

        The windows that wait have equal parts of the rest of the run.
        """
        if self.begun_at is None:
            self.begun_at = progress
        rest = (1 - self.begun_at) / len(self.waiting)
        share = (progress - self.begun_at) / rest if rest > 0 else 1.0
        return min(self.share_done + (1 - self.share_done) * max(share, 0.0), 1.0)

    def train_window(self, iteration: int, progress: float) -> dict[str, Tensor]:
        """Do one step of the window in memory; progress is that of its own training."""
        before, self.share_now = self.learner.frames_used, progress
        terms = self.learner.step(iteration, progress)
        self.frames_used += self.learner.frames_used - before
        return terms

    @property
    def frame_count(self) -> int:
        """Number of frames that this run trains."""
        return self.spans[-1].end - self.spans[self.fixed].first

    def release(self) -> None:
        """Give back the memory of the frames, which are on disk. Windows that are finished hold nothing else."""
        self.video.release_memory()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return all tensors that training changes and that are in memory: those of one window."""
        return iter(()) if self.number is None else self.learner.model.parameters()

    @property
    def seconds_to_finish(self) -> float:
        """About how many seconds it takes to finish the windows that wait, by the one that was first in memory."""
        if self.seconds_per_window is None and self.number is not None:
            self.seconds_per_window = self.learner.seconds_to_finish
        return len(self.waiting) * (self.seconds_per_window or 0.0)

    def finish(self) -> None:
        """Finish all windows that are not finished, and put the clip's atlases together."""
        while not self.is_started:
            self.start_next_window()
        for number in list(self.waiting):
            self.load_window(number)
            self.finish_window()
        self.store_window()
        self.assembled = self.assemble()
        for path in self.folder.iterdir():  # Files of windows before they were corrected are not needed any more.
            if path.name not in self.files and path.name.startswith("window_"):
                path.unlink()

    def apply_strokes(self) -> None:
        """Correct the opacity of the windows that have strokes; these windows are then trained."""
        with_strokes = [number for number, span in enumerate(self.spans) if any(t in span for t in self.video.strokes)]
        if with_strokes and with_strokes[0] < self.fixed:
            raise UserError(
                f"--strokes: frame {min(self.video.strokes)} belongs to the run that this one extends; correct "
                "that run, and extend it again"
            )
        for number in with_strokes:
            self.load_window(number)
            self.name_file(number)  # A run that is killed now still has the window as it was.
            model, before = self.learner.model, self.learner.model.transforms.clone()
            self.learner.apply_strokes()
            self.window_layers[number] = [
                follow_atlas(model, layer, before[layer], window_layer)
                for layer, window_layer in enumerate(self.window_layers[number])
            ]
            self.store_window()
        self.waiting = sorted({*self.waiting, *with_strokes})
        self.assembled = self.assemble()

    def mend(self, pins: list[Pin] | None, rigidity: dict[int, float]) -> None:
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
            "share_done": self.share_now,
            "coverages": {number: [each.half() for each in layers] for number, layers in self.coverages.items()},
            "files": list(self.files),
            "mask_sources": list(self.video.mask_sources),
            "transforms": torch.from_numpy(self.motion.transforms),
            "background": torch.from_numpy(background.transforms),
            "is_cylinder": background.is_cylinder,
            "shutter": self.motion.shutter,
            "upright": None if background.upright is None else torch.from_numpy(background.upright),
            "layers": [[layer.values() for layer in layers] for layers in self.window_layers],
            "fixed": self.fixed,
            "base": None if self.base is None else [atlas.values() for atlas in self.base],
        }
        if self.number is not None:
            state["window"] = self.learner.checkpoint()
        return {"windowed_learner": state} | (self.assembled.checkpoint() if self.assembled else {})

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take the state of the run from a checkpoint. Raises UserError if it is that of another clip or incomplete."""
        self.folder = path.parent / WINDOWS_FOLDER
        try:
            state = checkpoint["windowed_learner"]
            self.spans = [Span(*span) for span in state["spans"]]
            upright = None if state["upright"] is None else state["upright"].cpu().numpy()
            surface = Surface(state["background"].cpu().numpy(), state["is_cylinder"], upright)
            # Older checkpoints have no exposure time.
            self.motion = ClipMotion(state["transforms"].cpu().numpy(), surface, float(state.get("shutter", 0.0)))
            self.waiting, coverages = list(state["waiting"]), state["coverages"]
            self.coverages = {int(number): [each.cpu().float() for each in coverages[number]] for number in coverages}
            self.share_done = self.share_now = float(state["share_done"])
            self.files, self.video.mask_sources = list(state["files"]), tuple(state["mask_sources"])
            self.window_layers = [[WindowLayer.from_values(layer) for layer in layers] for layers in state["layers"]]
            self.fixed, base = int(state["fixed"]), state["base"]
            self.base = None if base is None else [LayerAtlas.from_values(atlas, CPU) for atlas in base]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path}: has no usable state of the training of a long clip; train again") from None
        if (frames := self.spans[-1].end) != self.video.size[0]:
            raise UserError(
                f"{path}: was trained on {frames} frames, the clip has {self.video.size[0]}; use its frames"
            )
        if state["number"] is not None:
            learner = self.make_learner(state["number"])
            learner.restore(state["window"], path)
            self.number, self.learner = state["number"], learner
        if "windows" in checkpoint:
            self.assembled = WindowedModel.from_checkpoint(checkpoint, path, self.device)

    def read_model(self, number: int) -> GridModel:
        """Return the model in the file of a window."""
        path = self.path(number)
        return GridModel.from_checkpoint(read_checkpoint(path, "cpu"), path)


def follow_atlas(model: GridModel, layer: int, transforms: Tensor, window_layer: WindowLayer) -> WindowLayer:
    """Return the place of a window's atlas after it may have been enlarged; transforms (T, 3, 3): from before that."""
    if (size := model.shape.atlas_sizes[layer]) == window_layer.size:
        return window_layer
    before, after = (each[0].cpu().double().numpy() for each in (transforms, model.transforms[layer]))
    shift = Placement.from_matrix(after @ np.linalg.inv(before))
    return replace(window_layer, size=size, placement=window_layer.placement.then(shift))


def keep_units(atlas: LayerAtlas, base: LayerAtlas) -> LayerAtlas:
    """Return an atlas with the units of uv that it had before it was enlarged from `base`; see `Model.uv_units`."""
    change = atlas.uv_placement.inverse().then(base.uv_placement).then(Placement(*base.units))
    return replace(atlas, units=(change.scale, change.x, change.y))


@torch.no_grad()
def measure_window_coverage(model: GridModel, opacity: Tensor) -> list[Tensor]:
    """Return how much a window shows of each layer's atlas, see `unwrap.measure_coverage`, on the CPU.

    opacity (F, T, ny, nx): see `GridLearner.opacity`.
    """
    frames = evenly_spaced_indices(model.shape.size[0], COVERAGE_FRAMES)

    def measure(layer: int) -> Tensor:
        coverage = measure_coverage(model, layer, lambda t: visibility(opacity[:, t])[layer], COVERAGE_STRIDE, frames)
        return coverage.cpu() * (model.shape.size[0] / len(frames))

    return [measure(layer) for layer in range(len(model.layers))]
