"""The start of a long clip: its layers are aligned as a whole, and then each window gets a model of its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alignment.camera import Surface, choose_surface
from alignment.layers import layer_pixels, match_layers
from alignment.shutter import align_with_shutter
from grids.model import GridModel
from grids.shape import Spacing
from grids.start import bend_model, find_objects, reduce_frames
from grids.windows import LayerAtlas, Placement, Span, WindowLayer
from masks.cues import shrink_video
from unwrap_utils import Video

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class ClipMotion:
    """How the layers of a clip move."""

    transforms: Floats  # (L, T, 3, 3) as `align_layers` returns them
    background: Surface  # on which the background's atlas lies
    shutter: float  # exposure time in frames; see `Video`

    def part(self, span: Span) -> "ClipMotion":
        """Return the motion of some frames."""
        frames = slice(span.first, span.end)
        surface = Surface(self.background.transforms[frames], self.background.is_cylinder, self.background.upright)
        return ClipMotion(self.transforms[:, frames], surface, self.shutter)

    @property
    def surfaces(self) -> list[Surface]:
        """The surfaces of all layers' atlases."""
        return [*(Surface(motion) for motion in self.transforms[:-1]), self.background]


def align_clip(video: Video) -> ClipMotion:
    """Align all layers of a clip. video: on the CPU; it may lie on disk."""
    video, transforms = align_with_shutter(video)
    background, _ = layer_pixels(video)[-1]
    surface, _ = choose_surface(video, background, transforms[-1])
    video.release_memory()
    return ClipMotion(transforms, surface, video.shutter)


def start_window(
    video: Video, motion: ClipMotion, spacing: Spacing, mask_quality: str, stride: int
) -> tuple[GridModel, Tensor]:
    """Compute a model of a window; see `grids.start.start_model`.

    video: the frames of the window, on the CPU. motion: of these frames.
    """
    # Seen from a frame of the window, because the first frames of a long clip may lie far away.
    middle = motion.transforms[:, video.size[0] // 2]
    local = np.linalg.inv(middle)[:, None] @ motion.transforms
    local = local / local[..., 2:, 2:]
    probabilities, kept = find_objects(video, shrink_video(video), local, mask_quality)
    frames = reduce_frames(video, stride)
    video = replace(video, shutter=motion.shutter)
    matches = match_layers(video, np.stack([surface.transforms for surface in motion.surfaces]))
    return bend_model(video, motion.surfaces, matches, probabilities, kept, spacing, frames, stride)


def describe_layers(model: GridModel, motion: ClipMotion) -> list[WindowLayer]:
    """Return the atlases of a window's layers. motion: of the window's frames."""
    return [
        WindowLayer(size, Placement.from_matrix(texel_matrix(model, layer, motion.surfaces[layer])))
        for layer, size in enumerate(model.shape.atlas_sizes)
    ]


def texel_matrix(model: GridModel, layer: int, surface: Surface) -> Floats:
    """Return the matrix (3, 3) from a layer's plane, or its unrolled cylinder, to texels of a window's atlas."""
    if surface.is_cylinder:
        unrolled: Floats = model.unrolled_to_texels.cpu().double().numpy()
        return unrolled @ np.linalg.inv(surface.upright_matrix)
    return model.transforms[layer, 0].cpu().double().numpy() @ np.linalg.inv(surface.transforms[0])


@dataclass(frozen=True)
class Extension:
    """A finished run that gets more frames: its windows, and its atlases."""

    spans: list[Span]
    layers: list[list[WindowLayer]]  # of each window
    atlases: list[LayerAtlas]
    checkpoints: Callable[[], Iterator[dict[str, Any]]]  # reads the checkpoints of the windows, one after the other


def continue_motion(video: Video, first: int, last_window: GridModel, extension: Extension) -> ClipMotion:
    """Return the motion of a clip from frame `first` on, joined to the last window of a run that ends after that frame.

    Transforms of frames before `first` are not computed; they are the identity. video: of all frames, on the CPU.
    """
    frames = video.size[0]
    part, aligned = align_with_shutter(video.part(first, frames))
    common = extension.spans[-1].end - 1  # the last frame that the run knows
    transforms = np.tile(np.eye(3), (len(aligned), frames, 1, 1))
    upright = None
    for layer, motion in enumerate(aligned):
        place = extension.layers[-1][layer].placement
        known = last_window.transforms[layer, common - extension.spans[-1].first].cpu().double().numpy()
        if last_window.surface(layer) is None:
            known = np.linalg.inv(place.matrix) @ known
        else:  # Its transforms lead to rays, which know nothing of texels.
            unrolled = np.linalg.inv(place.matrix) @ last_window.unrolled_to_texels.cpu().double().numpy()
            upright = unrolled[:2, :2]
        joined = known @ np.linalg.inv(motion[common - first]) @ motion
        transforms[layer, first:] = joined / joined[:, 2:, 2:] if last_window.surface(layer) is None else joined
    background = Surface(transforms[-1], upright is not None, upright)
    return ClipMotion(transforms, background, part.shutter)
