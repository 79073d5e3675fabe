"""Fit the looks of a trained model to the frames; see `grids.looks`.

With mappings, opacity and light as they are, the colour of a pixel is the sum of texels with known weights, so this is
a linear least-squares problem. (A frame is divided by its light, so errors of dark pixels count more.) It is solved by
simultaneous iterative reconstruction (SIRT, Gilbert 1972): every texel changes by the mean error of its pixels,
weighted by how much they show of it. This converges without a step size.
"""

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing

import torch
from torch import Tensor
from tqdm import tqdm

from grids.atlases import sampling_units
from grids.fields import Lattice
from grids.frames import GridFrames
from grids.looks import Look, TexelBox, space_looks, weigh_looks
from grids.model import GridModel
from implicit_neural_networks import visibility
from media.clip import evenly_spaced_indices
from parallel.side_by_side import CPU, MOST_STREAM_WORKERS, count_workers, stream_side_by_side
from unwrap_utils import Video

PASSES = 2  # The first makes up for most of the errors. A third gains .2 to .3 dB.
SHRINKAGE = 0.3  # Added to the weight of every texel, in pixels: a texel that few pixels show changes little.
BOX_STRIDE_PX = 16  # Spacing of the pixels by which the box of a frame in an atlas is found; mappings are smooth.
BOX_MARGIN_TEXELS = 8  # Texels around that box.
TIMED_FRAMES = 4  # Fewest frames that are timed to estimate how long a fit takes.

NO_BOX = (0, 1, 0, 1)  # Of a frame that does not show an object; it counts for nothing.

Boxes = list[TexelBox]
"""Type of the boxes of one frame: for each layer the part of its atlas that the frame can show."""


def fit_looks(model: GridModel, video: Video, look_frames: int) -> None:
    """Add looks, about look_frames apart, to a model without looks, fitted to a video; none if the clip is short.

    model: with atlases at full resolution, on the device of the video.
    """
    frames = range(len(video.frames))
    centers = space_looks(len(frames), look_frames)
    if not centers:
        return
    boxes = [find_boxes(model, t) for t in frames]
    for number, center in enumerate(centers):
        shown = [boxes[t] for t in frames if number in dict(weigh_looks(centers, t))]
        model.looks.append(Look(center, [join_boxes(layer_boxes) for layer_boxes in zip(*shown, strict=True)]))
    model.looks.to(video.device)
    with tqdm(total=PASSES * len(frames), desc="fitting looks", unit="frame", leave=False) as bar:
        for _ in range(PASSES):
            improve_looks(model, video, centers, boxes, bar)


def choose_timed_frames(video: Video) -> list[int]:
    """Return frames, evenly spread, that are timed to estimate what all frames take; enough to keep all cores busy."""
    workers = min(count_workers(video.device), MOST_STREAM_WORKERS)
    return evenly_spaced_indices(len(video.frames), max(TIMED_FRAMES, 2 * workers))


def estimate_seconds(model: GridModel, video: Video, look_frames: int) -> float:
    """Return about how many seconds `fit_looks` takes, by the time of some frames."""
    count, timed = len(video.frames), choose_timed_frames(video)
    if not space_looks(count, look_frames):
        return 0.0
    boxes, seconds = {t: find_boxes(model, t) for t in timed}, 0.0
    for _ in range(2):  # The first time takes longer, because nothing is in the caches yet.
        begin = time.perf_counter()
        with closing(stream_errors(model, video, timed, boxes)) as stream:
            last = [sums for sums, _ in zip(stream, timed, strict=True)][-1]
        float(last[0].sum())  # It waits for a GPU.
        seconds = time.perf_counter() - begin
    return PASSES * count * seconds / len(timed)


def stream_errors(
    model: GridModel, video: Video, frames: Iterable[int], boxes: dict[int, Boxes] | list[Boxes]
) -> Generator[list[Tensor], None, None]:
    """Yield `sum_frame_errors` of some frames; a core of the CPU works on one frame at a time. boxes: by frame."""
    if video.device == CPU:
        return stream_side_by_side(lambda t: sum_frame_errors(model, video, t, boxes[t]), frames)
    return (sum_frame_errors(model, video, t, boxes[t]) for t in frames)


def improve_looks(model: GridModel, video: Video, centers: Sequence[float], boxes: list[Boxes], bar: tqdm) -> None:
    """Change all looks of a model once, see SIRT above. centers: frames of the looks. boxes: of all frames.

    Frames come in their order, so the sums of two looks only are in memory.
    """
    totals: dict[int, list[Tensor]] = {}
    with closing(stream_errors(model, video, range(len(boxes)), boxes)) as stream:
        for t, sums in enumerate(stream):
            weights = weigh_looks(centers, t)
            for number in [each for each in totals if each < weights[0][0]]:  # No later frame shows it.
                apply_sums(model.looks[number], totals.pop(number))
            for number, weight in weights:
                look = model.looks[number]
                if number not in totals:
                    changes = [look.change(layer) for layer in range(len(sums))]
                    totals[number] = [each.new_zeros(4, *each.shape[1:], dtype=torch.float32) for each in changes]
                for total, layer_sums, box, own in zip(totals[number], sums, boxes[t], look.boxes, strict=True):
                    if box == NO_BOX:
                        continue
                    rows, columns = (slice(box[side] - own[side], box[side + 1] - own[side]) for side in (0, 2))
                    total[:, rows, columns].add_(layer_sums, alpha=weight)
            bar.update()
    for number, rest in totals.items():
        apply_sums(model.looks[number], rest)


def apply_sums(look: Look, sums: list[Tensor]) -> None:
    """Change a look by the mean errors of its texels; sums: see `sum_frame_errors`."""
    for layer, layer_sums in enumerate(sums):
        look.add_change(layer, layer_sums[:3] / (layer_sums[3:] + SHRINKAGE))


@torch.no_grad()
def sum_frame_errors(model: GridModel, video: Video, t: int, boxes: Boxes) -> list[Tensor]:
    """Return for each layer the sums of the errors of frame t over the texels of a box of its atlas, (4, h, w).

    The first three channels are the errors, frame minus model, times the weights of the pixels; the last one is the sum
    of the weights. A weight is how much the pixel shows of the texel.
    """
    grid_frames, lattice = model.at_frames(t), Lattice.of_stride(1, model.shape.size[1:])
    everything = slice(None), slice(None)
    parts = [grid_frames.box_slices(index, lattice) for index in range(len(model.alphas))] + [everything]
    alpha = [grid_frames.alpha(index, lattice)[0, 0].flatten() for index in range(len(model.alphas))]
    shown = visibility(torch.stack(alpha)[..., None])[..., 0].unflatten(1, lattice.shape)
    errors = video.frames[t].permute(2, 0, 1) / 255
    if len(model.light):
        errors = errors / grid_frames.light(lattice)[0]
    for layer, part in enumerate(parts):
        errors[:, *part] -= shown[layer][part] * grid_frames.color(layer, lattice.crop(*part))[0]
    return [
        sum_over_texels(grid_frames, layer, lattice.crop(*part), errors[:, *part], shown[layer][part], box)
        for layer, (part, box) in enumerate(zip(parts, boxes, strict=True))
    ]


def sum_over_texels(
    grid_frames: GridFrames, layer: int, lattice: Lattice, errors: Tensor, shown: Tensor, box: TexelBox
) -> Tensor:
    """Add up errors (3, h, w) on a lattice over the texels of a box; see `sum_frame_errors`.

    shown (h, w): how much the pixels show of the layer.
    """
    top, bottom, left, right = box
    size = bottom - top, right - left
    shift = torch.tensor([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
    units = (torch.tensor(sampling_units(size)).view(3, 3) @ shift).to(errors.device)
    places = grid_frames.places(layer, lattice, units).permute(0, 2, 3, 1)
    values = torch.cat((errors * shown, shown[None]))[None]
    # The derivative of sampling adds the values of pixels to their texels. It is linear, so it needs no texels, and
    # only their shape counts. 0, 0, False: bilinear, zero outside the texels, align_corners=False.
    texels = torch.empty(1, 4, *size, device=errors.device)
    sums, _ = torch.ops.aten.grid_sampler_2d_backward(values, texels, places, 0, 0, False, [True, False])
    return sums[0]


@torch.no_grad()
def find_boxes(model: GridModel, t: int) -> Boxes:
    """Return for each layer the box of its atlas that frame t can show; NO_BOX for objects that it does not show."""
    height, width = model.shape.size[1:]
    grid_frames = model.at_frames(t)
    boxes: Boxes = []
    for layer, size in enumerate(model.shape.atlas_sizes):
        is_object = layer < len(model.alphas)
        top, bottom, left, right = model.boxes_on_cpu()[layer, t].tolist() if is_object else (0, height, 0, width)
        if bottom <= top:
            boxes.append(NO_BOX)
            continue
        rows_px, columns_px = (
            torch.linspace(low, high - 1, 2 + (high - low) // BOX_STRIDE_PX)
            for low, high in ((top, bottom), (left, right))
        )
        x, y = grid_frames.texels(layer, Lattice(rows_px, columns_px, (height, width)))[0].flatten(1).cpu()
        boxes.append((*clamp_range(y, size[0]), *clamp_range(x, size[1])))
    return boxes


def clamp_range(positions: Tensor, size: int) -> tuple[int, int]:
    """Return the first and, exclusive, the last texel around positions (n,), with a margin, within 0 to `size`.

    It is at least one texel.
    """
    first = min(max(int(positions.min()) - BOX_MARGIN_TEXELS, 0), size - 1)
    return first, max(first + 1, min(int(positions.max()) + BOX_MARGIN_TEXELS + 1, size))


def join_boxes(boxes: Sequence[TexelBox]) -> TexelBox:
    """Return the smallest box that holds all boxes but NO_BOX; NO_BOX if there is no other."""
    filled = [box for box in boxes if box != NO_BOX] or [NO_BOX]
    tops, bottoms, lefts, rights = zip(*filled, strict=True)
    return min(tops), max(bottoms), min(lefts), max(rights)
