"""Fit the looks of a trained model to the frames; see `grids.looks`.

It is a linear least-squares problem, since mappings and opacity stay as they are: the colour of a pixel is the sum of
texels with known weights. It is solved by simultaneous iterative reconstruction (SIRT, Gilbert 1972): every texel
changes by the mean of what its pixels lack, weighted by how much they show of it. This converges without a step size.
"""

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from grids.atlases import sampling_units
from grids.fields import Lattice
from grids.looks import Look, TexelBox, space_looks, weigh_looks
from grids.model import GridFrames, GridModel
from implicit_neural_networks import visibility
from parallel.side_by_side import CPU, stream_side_by_side
from unwrap_utils import Video

PASSES = 2  # The first makes up for most of the differences. A third gains .1 to .2 dB.
SHRINKAGE = 0.3  # Weight of no difference, in pixels: texels that hardly any pixel shows keep the colour of the atlas.
BOX_STRIDE_PX = 16  # Spacing of the pixels by which the box of a frame in an atlas is found; mappings are smooth.
BOX_MARGIN_TEXELS = 8  # Texels around that box.
TIMED_FRAMES = 4  # Frames that are timed to estimate how long a fit takes.


@dataclass
class Correction:
    """What one frame says about a layer's atlas in a box of it."""

    box: TexelBox
    sums: Tensor  # (4, h, w): of each texel's pixels, the differences (red, green, blue) by their weights, and weights


def fit_looks(model: GridModel, video: Video, look_frames: int) -> None:
    """Give a model that has none looks, about look_frames apart, fitted to a video; none if the clip is short.

    model: with atlases at full resolution, on the device of the video.
    """
    centers = space_looks(len(video.frames), look_frames)
    model.looks.extend(Look(center, find_boxes(model, centers, number)) for number, center in enumerate(centers))
    model.looks.to(video.device)
    for _ in range(PASSES if centers else 0):
        improve_looks(model, video, centers)


def estimate_seconds(model: GridModel, video: Video, look_frames: int) -> float:
    """Return about how many seconds `fit_looks` takes, by the time of the first frames."""
    if not space_looks(len(video.frames), look_frames):
        return 0.0
    timed = range(min(TIMED_FRAMES, len(video.frames)))
    seconds = 0.0
    for _ in range(2):  # The first time takes longer, because nothing is in the caches yet.
        begin = time.perf_counter()
        with closing(stream_frames(model, video, timed)) as stream:
            for _ in stream:
                pass
        seconds = time.perf_counter() - begin
    return PASSES * len(video.frames) * seconds / len(timed)


def stream_frames(model: GridModel, video: Video, frames: Iterable[int]) -> Generator[list[Correction], None, None]:
    """Yield what each of some frames says about the atlases; a core of the CPU works on one frame at a time."""
    if video.device == CPU:
        return stream_side_by_side(lambda t: correct_frame(model, video, t), frames)
    return (correct_frame(model, video, t) for t in frames)


def improve_looks(model: GridModel, video: Video, centers: Sequence[float]) -> None:
    """Change all looks of a model once, see SIRT above. centers: frames of the looks.

    Frames come in their order, so the sums of two looks only are in memory.
    """
    sums: dict[int, list[Tensor]] = {}
    with closing(stream_frames(model, video, range(len(video.frames)))) as stream:
        for t, corrections in enumerate(stream):
            weights = weigh_looks(centers, t)
            for number in [each for each in sums if each < weights[0][0]]:  # No later frame shows it.
                apply_sums(model.looks[number], sums.pop(number))
            for number, weight in weights:
                if number not in sums:
                    changes = (model.looks[number].change(layer) for layer in range(len(corrections)))
                    sums[number] = [change.new_zeros(4, *change.shape[1:], dtype=torch.float32) for change in changes]
                for layer, correction in enumerate(corrections):
                    own_top, _, own_left, _ = model.looks[number].boxes[layer]
                    top, bottom, left, right = correction.box
                    part = sums[number][layer][:, top - own_top : bottom - own_top, left - own_left : right - own_left]
                    part.add_(correction.sums, alpha=weight)
    for number, rest in sums.items():
        apply_sums(model.looks[number], rest)


def apply_sums(look: Look, sums: list[Tensor]) -> None:
    """Change a look by the weighted means of what pixels lack; sums: of each layer, see `Correction`."""
    for layer, layer_sums in enumerate(sums):
        look.add_change(layer, layer_sums[:3] / (layer_sums[3:] + SHRINKAGE))


@torch.no_grad()
def correct_frame(model: GridModel, video: Video, t: int) -> list[Correction]:
    """Return what frame t of a video says about each layer's atlas."""
    grid_frames, lattice = model.at_frames(t), Lattice.of_stride(1, model.shape.size[1:])
    everything = slice(None), slice(None)
    parts = [grid_frames.box_slices(index, lattice) for index in range(len(model.alphas))] + [everything]
    alpha = [grid_frames.alpha(index, lattice)[0, 0].flatten() for index in range(len(model.alphas))]
    shown = visibility(torch.stack(alpha)[..., None])[..., 0].unflatten(1, lattice.shape)
    missing = video.frames[t].permute(2, 0, 1) / 255
    if len(model.light):
        missing = missing / grid_frames.light(lattice)[0]
    for layer, part in enumerate(parts):
        color = grid_frames.color(layer, lattice.crop(*part))[0]
        missing[:, *part] -= shown[layer][part] * color
    return [
        collect(
            grid_frames, layer, lattice.crop(*part), missing[:, *part], shown[layer][part], find_box(model, layer, t)
        )
        for layer, part in enumerate(parts)
    ]


def collect(
    grid_frames: GridFrames, layer: int, lattice: Lattice, missing: Tensor, shown: Tensor, box: TexelBox
) -> Correction:
    """Add up for each texel of a box what its pixels lack.

    missing (3, h, w): differences of the pixels' colours on the lattice. shown (h, w): how much they show of the layer.
    """
    top, bottom, left, right = box
    size = bottom - top, right - left
    shift = torch.tensor([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
    units = (torch.tensor(sampling_units(size)).view(3, 3) @ shift).to(missing.device)
    places = grid_frames.places(layer, lattice, units).permute(0, 2, 3, 1)
    values = torch.cat((missing * shown, shown[None]))[None]
    with torch.enable_grad():  # The derivative of sampling adds the values of pixels to their texels.
        texels = torch.zeros(1, 4, *size, device=missing.device, requires_grad=True)
        sampled = functional.grid_sample(texels, places, padding_mode="zeros", align_corners=False)
    (sums,) = torch.autograd.grad(sampled, texels, values)
    return Correction(box, sums[0])


def find_boxes(model: GridModel, centers: Sequence[float], number: int) -> list[TexelBox]:
    """Return for each layer the box of its atlas that the frames of a look show."""
    frames = [t for t in range(model.shape.size[0]) if number in dict(weigh_looks(centers, t))]

    def join(layer: int) -> TexelBox:
        tops, bottoms, lefts, rights = zip(*(find_box(model, layer, t) for t in frames), strict=True)
        return min(tops), max(bottoms), min(lefts), max(rights)

    return [join(layer) for layer in range(len(model.layers))]


@torch.no_grad()
def find_box(model: GridModel, layer: int, t: int) -> TexelBox:
    """Return the box of a layer's atlas that frame t can show, at least one texel."""
    height, width = model.shape.size[1:]
    is_object = layer < len(model.alphas)
    top, bottom, left, right = model.boxes_on_cpu()[layer, t].tolist() if is_object else (0, height, 0, width)
    rows_px, columns_px = (
        torch.linspace(low, max(high - 1, low), 2 + (high - low) // BOX_STRIDE_PX)
        for low, high in ((top, bottom), (left, right))
    )
    texels = model.at_frames(t).texels(layer, Lattice(rows_px, columns_px, (height, width)))[0].flatten(1).cpu()
    rows, columns = model.shape.atlas_sizes[layer]
    (first_x, first_y), (last_x, last_y) = (
        (texels.amin(1) - BOX_MARGIN_TEXELS).tolist(),
        (texels.amax(1) + BOX_MARGIN_TEXELS).tolist(),
    )
    first_y, last_y = clamp_range(first_y, last_y, rows)
    first_x, last_x = clamp_range(first_x, last_x, columns)
    return first_y, last_y, first_x, last_x


def clamp_range(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the whole numbers from `low` to before `high`, at least one, within 0 to `size`."""
    first = min(max(int(low), 0), size - 1)
    return first, max(first + 1, min(int(high) + 1, size))
