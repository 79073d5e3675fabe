"""The closed-form start of a grid model: aligned layers, opacity from refined masks, and averaged atlases."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from alignment.camera import OUTLINE_SHARES, Surface, choose_surface
from alignment.layers import align_layers, match_layers, object_boxes, refine_long_range
from alignment.shutter import measure_shutter
from alignment.tracks import PointPairs
from grids.atlas_size import enlarge_atlas, surface_extent, texel_extent
from grids.fields import Lattice
from grids.flow_fit import fit_to_flow
from grids.frames import LOGIT_STEP, log_to_light_value
from grids.matting import SOFT_RANGE
from grids.model import BOX_MARGIN, GridModel
from grids.shape import Shape, Spacing
from grids.surfaces import middle_jacobians
from grids.unwrap import average_atlas
from grids.visible import LIKELY, POSSIBLE, visible_pixels
from implicit_neural_networks import visibility
from masks.cues import SmallClip, shrink_video
from masks.quality import decide_masks, signed_distance
from masks.refinement import RefinedMasks, refine_masks
from masks.strokes import apply_strokes, object_strokes, select_strokes
from media import to_8_bit
from media.clip import evenly_spaced_indices
from parallel.side_by_side import map_side_by_side, run_side_by_side
from unwrap_utils import Video

Floats = NDArray[np.floating]

LARGEST_ATLAS_TEXELS = 4_000_000
LARGEST_START_ALPHA = 0.998  # Largest opacity at the start; at 1 the gradient would vanish and training change nothing.
ATLAS_MARGIN = 0.08  # Share of an object's extent that its atlas has around it on each side.
COARSE_FRAMES = 0.1  # Share of the frames in which a pixel may be smaller than a texel.
CERTAIN = 0.8  # Probabilities of at least 0.8 become 1, of at most 0.2 become 0.
PREVIEW_FRAMES = 24  # Most frames that are averaged for the atlases of the preview.
# A layer that direct matches call rigid bends only if the error of its atlas falls by at least this share. It fell by
# at most 4 % for rigid drawn layers, one of which is blurred by its motion, and by 22 % where legs move in a layer.
LEAST_RIGID_GAIN = 0.08
OUTLINE_LOGIT = 1.5  # Logit of opacity, up to its sign, in pixels of a kept mask that touch its outline.
LOGIT_PER_PX = 2.5  # Growth of the logit per pixel of distance to the outline.
LARGEST_MASK_LOGIT = 7.0  # Largest logit of a kept mask.
LIGHT_PIXELS_PER_NODE = 4  # Pixels of reduced frames per node of light, along each axis, from which it is computed.
DARKEST_LIT = 0.03  # Colour in [0, 1] that is added to both sides of a ratio, so that dark pixels do not count much.
MAX_START_LOG_LIGHT = 0.6  # Natural logarithm of the strongest light at the start; below LARGEST_LOG_LIGHT.


def start_model(
    video: Video, spacing: Spacing, mask_quality: str, stride: int, show_preview: Callable[[GridModel], None]
) -> tuple[GridModel, Tensor]:
    """Compute a model that already shows the clip.

    Returns the model and the objects' probability (F, T, ny, nx) at the nodes of their opacity.

    mask_quality: as in the config. stride: reduction of the atlases. show_preview is called with a first model, which
    is made with the masks as they are given, before they are refined.
    """
    cpu_video = video.to(torch.device("cpu"))
    transforms = align_layers(cpu_video)
    frames = reduce_frames(cpu_video, stride)
    masks = cpu_video.masks.numpy()
    motions = [Surface(motion) for motion in transforms]
    show_preview(build_model(cpu_video, motions, masks, spacing, frames, stride, PREVIEW_FRAMES)[0])
    cpu_video = measure_shutter(cpu_video, transforms)
    # A function of its own, so that the reduced clip is freed before the layers bend, which needs most memory.
    found = find_layers(cpu_video, transforms, mask_quality)
    return bend_model(cpu_video, *found, spacing, frames, stride)


def find_layers(
    video: Video, transforms: Floats, mask_quality: str
) -> tuple[list[Surface], list[PointPairs], NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the motions of all layers, matches between distant frames, and the objects' probabilities and kept frames.

    They are as `bend_model` takes them. video: on the CPU. transforms (L, T, 3, 3): of all layers, from `align_layers`.
    """
    matches, clip = run_side_by_side(lambda: match_layers(video, transforms), lambda: shrink_video(video))
    transforms = refine_long_range(video, transforms, matches)
    is_background = ~np.asarray((video.masks.numpy() > 127).any(0))
    (probabilities, kept), (background, surface_matches) = run_side_by_side(
        lambda: find_objects(video, clip, transforms, mask_quality),
        lambda: choose_surface(video, is_background, transforms[-1]),
    )
    if surface_matches is not None:
        matches[-1] = surface_matches
    return [*(Surface(motion) for motion in transforms[:-1]), background], matches, probabilities, kept


def bend_model(
    video: Video,
    motions: list[Surface],
    matches: list[PointPairs],
    probabilities: NDArray[np.uint8],
    kept: NDArray[np.bool_],
    spacing: Spacing,
    frames: Tensor,
    stride: int,
) -> tuple[GridModel, Tensor]:
    """Build a model from the motions of its layers and the objects' probabilities, and let it bend; see `start_model`.

    video: on the CPU. matches: see `alignment.layers.match_layers`. The other arguments are those of `build_model`,
    `keep_masks` and `bend_layers`.
    """
    model, at_nodes = build_model(video, motions, probabilities, spacing, frames, stride)
    keep_masks(model, probabilities, kept, video.strokes)
    bend_layers(model, video, matches, probabilities, frames, at_nodes, stride)
    for index, is_kept in enumerate(kept):  # There the learned opacity is a change of the mask's.
        model.last_alpha_grid(index).values.data[torch.from_numpy(is_kept)] = 0
    fit_light(model, video.frames.numpy())
    return model, at_nodes


def find_objects(
    video: Video, clip: SmallClip, transforms: Floats, mask_quality: str
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the probability (F, T, H, W) of all objects, 255 for certain, and the frames whose mask is kept, (F, T).

    video: on the CPU. clip: the same, reduced. transforms (L, T, 3, 3): of all layers. mask_quality: as in the config.
    Prints for each object what was decided about its masks.
    """
    rgb, probabilities, kept = video.frames.numpy(), [], []
    objects = zip(video.masks.numpy(), transforms[:-1], video.mask_sources, strict=True)
    for number, (mask, motion, source) in enumerate(objects, 1):
        decision = decide_masks(video, mask, mask_quality, source)
        print(f"object {number}: {decision.reason}")
        probability = mask
        if decision.is_refined.any():
            refined = upsample_probability(refine_masks(clip, mask, transforms[-1], motion), rgb)
            probability = np.where(decision.is_refined[:, None, None], refined, mask)
        probabilities.append(apply_strokes(clip, rgb, probability, select_strokes(video.strokes, number)))
        kept.append(~decision.is_refined)
    return np.stack(probabilities), np.stack(kept)


def bend_layers(
    model: GridModel,
    video: Video,
    matches: list[PointPairs],
    probabilities: NDArray[np.uint8],
    frames: Tensor,
    opacity: Tensor,
    stride: int,
) -> None:
    """Let the mappings of all layers follow the flow, and enlarge the objects' atlases as far as they need it.

    So objects bend, and the background follows the parallax of a camera that moves. A layer whose atlas then shows the
    frames worse keeps its mapping: the flow of windows and reflections is not the layer's. So does a rigid layer, see
    `grids.flow_fit.are_rigid`, unless its atlas then shows the frames clearly better. Training does not bend it either:
    errors of the flow would only move it away from its transforms. The background of a camera that stands still never
    bends. matches: of all layers, see `alignment.layers.match_layers`. probabilities (F, T, H, W): of the objects, 255
    for certain. frames, opacity, stride: see `average_atlases`.
    """
    visible = visible_pixels(probabilities)
    background = len(model.layers) - 1
    if (model.transforms[background] == model.transforms[background, 0]).all():
        model.rigid_layers |= {background}
    layers = [layer for layer in range(len(model.layers)) if layer not in model.rigid_layers]
    grids = {layer: model.fields_by_name()[f"mappings.{layer}"] for layer in layers}
    before = {layer: [grid.values.detach().clone() for grid in grids[layer]] for layer in layers}
    errors = {layer: atlas_error(model, layer, frames, visible[layer], stride) for layer in layers}
    rigidity = map_side_by_side(lambda layer: fit_to_flow(model, layer, video, visible[layer], matches[layer]), layers)
    may_be_rigid = dict(zip(layers, rigidity, strict=True))
    for layer in layers:
        if not model.layers[layer].is_background:
            enlarge_atlas(model, layer, texel_extent(model, layer, probabilities[layer] > 255 * LIKELY))
        average_layer(model, layer, frames, opacity, stride)
        limit = errors[layer] * (1 - LEAST_RIGID_GAIN if may_be_rigid[layer] else 1)
        if atlas_error(model, layer, frames, visible[layer], stride) > limit:
            if may_be_rigid[layer]:
                model.rigid_layers |= {layer}
            for grid, values in zip(grids[layer], before[layer], strict=True):
                grid.values.data.copy_(values)
            average_layer(model, layer, frames, opacity, stride)


@torch.no_grad()
def atlas_error(model: GridModel, layer: int, frames: Tensor, is_visible: NDArray[np.bool_], stride: int) -> float:
    """Return the mean absolute difference, in [0, 1], between a layer's atlas and what is visible of it in some frames.

    frames (T, 3, H / stride, W / stride) uint8. is_visible (T, H, W).
    """
    lattice = Lattice.of_stride(stride, model.shape.size[1:])
    rows, columns = (axis.long().numpy() for axis in (lattice.rows_px, lattice.columns_px))
    total, count = 0.0, 0
    for t in evenly_spaced_indices(len(frames), PREVIEW_FRAMES):
        mask = torch.from_numpy(is_visible[t][np.ix_(rows, columns)])
        grid_frames = model.at_frames(t)
        color = grid_frames.color(layer, lattice)[0]
        total += float((color - frames[t] / 255).abs().mean(0)[mask].sum())
        count += int(mask.sum())
    return total / max(count, 1)


@torch.no_grad()
def fit_light(model: GridModel, rgb: NDArray[np.uint8]) -> None:
    """Set the light of a model to the smooth ratio of the frames (T, H, W, 3) to what its layers show without light.

    So shadows, which belong to no layer, need not be learned from nothing.
    """
    if not len(model.light):
        return
    nodes = model.fields_by_name()["light"][0].values
    size = nodes.shape[3] * LIGHT_PIXELS_PER_NODE, nodes.shape[2] * LIGHT_PIXELS_PER_NODE  # width, height

    def fit_frame(t: int) -> None:
        """Set the nodes of frame t."""
        shown = model.frame_sample(t, model.shape.size, full_range=True, with_colors=True, output_size=size).rgb
        shown_rgb = shown.view(size[1], size[0], 3).numpy()
        true_rgb = cv2.resize(rgb[t], size, interpolation=cv2.INTER_AREA) / np.float32(255)
        smooth, true_smooth = (
            cv2.GaussianBlur(image, (0, 0), LIGHT_PIXELS_PER_NODE) + DARKEST_LIT for image in (shown_rgb, true_rgb)
        )
        log_ratio = np.log(true_smooth / smooth).clip(-MAX_START_LOG_LIGHT, MAX_START_LOG_LIGHT)
        values = torch.from_numpy(log_to_light_value(log_ratio)).permute(2, 0, 1)[None]
        nodes.data[t] = functional.interpolate(values, nodes.shape[2:], mode="bilinear", align_corners=True)[0]

    map_side_by_side(fit_frame, range(len(rgb)))


def keep_masks(
    model: GridModel, masks: NDArray[np.uint8], is_kept: NDArray[np.bool_], strokes: dict[int, NDArray[np.uint8]]
) -> None:
    """Make the opacity of a model follow masks (F, T, H, W) in the frames in which they are kept, (F, T), and strokes.

    strokes: labels (H, W) by frame, see `masks.strokes.read_strokes`.
    """
    if not is_kept.any() and not strokes:
        return
    logits = np.zeros(masks.shape, np.int8)
    for index, t in np.argwhere(is_kept):
        logits[index, t] = np.rint(mask_logits(masks[index, t]) / LOGIT_STEP)
    for t, labels in strokes.items():
        for index in range(len(masks)):
            says = object_strokes(labels, index + 1)
            logits[index, t] = np.where(says, says * int(LARGEST_MASK_LOGIT / LOGIT_STEP), logits[index, t])
    model.keep_masks(torch.from_numpy(logits), torch.from_numpy(is_kept))


def mask_logits(mask: NDArray[np.uint8]) -> Floats:
    """Return the logits (H, W) of the opacity that a mask (H, W) stands for, positive where it is above one half.

    Their size grows with the distance to the outline, so that the outline alone is soft. Where the mask itself is soft,
    they are those of its values.
    """
    inside = mask > 127
    # Where a mask has no outline at all, the distance to it is limited by the frame.
    distance = np.minimum(np.abs(signed_distance(inside)) + 0.5, sum(mask.shape))
    size = np.minimum(OUTLINE_LOGIT + LOGIT_PER_PX * (distance - 1), LARGEST_MASK_LOGIT)
    logits = np.where(inside, size, -size)
    is_soft = (mask > SOFT_RANGE[0]) & (mask < SOFT_RANGE[1])
    opacity = np.clip((mask + 0.5) / 256, 1e-3, 1 - 1e-3)
    return np.where(is_soft, np.log(opacity / (1 - opacity)), logits)


def build_model(
    video: Video,
    motions: list[Surface],
    probabilities: NDArray[np.uint8],
    spacing: Spacing,
    frames: Tensor,
    stride: int,
    max_frames: int | None = None,
) -> tuple[GridModel, Tensor]:
    """Build a model with averaged atlases from the motions of the layers and the objects' probabilities.

    Returns the model and the probabilities (F, T, ny, nx) in [0, 1] at the nodes of the objects' opacity.

    motions: of the objects, front to back, and of the background. probabilities (F, T, H, W): 255 for certain. frames
    (T, 3, H / stride, W / stride): the video at the resolution that the atlases get. max_frames: most frames that are
    averaged, evenly spread; None: all.
    """
    _, height, width = video.size
    fits = [
        fit_object_atlas(motion.transforms, probability > 255 * LIKELY)
        for motion, probability in zip(motions[:-1], probabilities, strict=True)
    ]
    background = motions[-1]
    fits.append(fit_background_atlas(background, (height, width)))
    model = GridModel(Shape(video.size, tuple(size for _, size in fits), spacing, background.is_cylinder))
    matrices: list[Floats] = [to_atlas @ motion.transforms for (to_atlas, _), motion in zip(fits, motions, strict=True)]
    if background.is_cylinder:
        matrices[-1] = background.transforms
        model.unrolled_to_texels.copy_(torch.from_numpy(fits[-1][0] @ background.upright_matrix))
    model.transforms.copy_(torch.from_numpy(np.stack(matrices)))
    boxes = [object_boxes(probability > 255 * POSSIBLE, BOX_MARGIN) for probability in probabilities]
    model.boxes.copy_(torch.from_numpy(np.stack(boxes)))
    nodes = model.last_alpha_grid(0).values.shape
    at_nodes = torch.stack([sample_at_nodes(probability, (nodes[2], nodes[3])) for probability in probabilities])
    at_nodes = (at_nodes * 255).round() / 255  # as checkpoints store it, so that resuming changes nothing
    for index, opacity in enumerate(at_nodes):
        logits = torch.logit(opacity.clamp(1 - LARGEST_START_ALPHA, LARGEST_START_ALPHA))
        model.last_alpha_grid(index).values.data.copy_(logits[:, None])
    average_atlases(model, frames, at_nodes, stride, max_frames)
    return model, at_nodes


def upsample_probability(masks: RefinedMasks, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the probability of refined masks at the size of the frames `rgb`, (T, H, W), 255 for certain.

    It takes a quarter of the memory of 32-bit floats.
    """

    def upsample(t: int) -> NDArray[np.uint8]:
        return to_8_bit((masks.upsample(rgb[t], t) - (1 - CERTAIN)) / (2 * CERTAIN - 1))

    return np.stack(map_side_by_side(upsample, range(len(rgb))))


def fit_object_atlas(transforms: Floats, inside: NDArray[np.bool_]) -> tuple[Floats, tuple[int, int]]:
    """Fit an atlas around the pixels (T, H, W) of an object; see `fit_atlas`.

    transforms (T, 3, 3): from pixels to a reference frame.
    """
    jacobians = middle_jacobians(torch.from_numpy(transforms).float(), (inside.shape[1], inside.shape[2]))
    is_visible = inside.any((1, 2))
    scales = jacobians.det().abs().sqrt().numpy()[is_visible if is_visible.any() else slice(None)]
    return fit_atlas(surface_extent(transforms, inside), scales, ATLAS_MARGIN, 1.0)


def fit_background_atlas(surface: Surface, size: tuple[int, int]) -> tuple[Floats, tuple[int, int]]:
    """Fit an atlas around all frames of (H, W) on the background's surface; see `fit_atlas`."""
    height, width = size
    points = OUTLINE_SHARES * [width - 1, height - 1]
    unroll = torch.from_numpy(surface.upright_matrix).float() if surface.is_cylinder else None
    jacobians = middle_jacobians(torch.from_numpy(surface.transforms).float(), size, unroll)
    scales = jacobians.det().abs().sqrt().numpy()
    unit = float(np.median(scales)) if surface.is_cylinder else 1.0
    return fit_atlas(surface.unroll(points).reshape(-1, 2), scales, 0.0, unit)


def fit_atlas(points: Floats, scales: Floats, margin: float, unit: float) -> tuple[Floats, tuple[int, int]]:
    """Fit an atlas around points (n, 2) of a layer on its surface.

    Returns the transform (3, 3) from the surface to texels of the atlas, and its (height, width).

    scales: size of a pixel on the surface, in the frames that show the layer. margin: share of the extent that is added
    on each side. unit: usual size of a pixel on the surface. In most frames that show the layer, a texel is at most as
    large as a pixel, unless the atlas would become too large.
    """
    low, high = points.min(0), points.max(0)
    border = margin * (high - low) + 2 * unit
    low, extent = low - border, high - low + 2 * border
    texels_per_unit = 1 / max(float(np.quantile(scales, COARSE_FRAMES)), 1e-3 * unit)
    texels_per_unit = min(texels_per_unit, float(np.sqrt(LARGEST_ATLAS_TEXELS / extent.prod())))
    to_atlas = np.array(
        [
            [texels_per_unit, 0, -low[0] * texels_per_unit],
            [0, texels_per_unit, -low[1] * texels_per_unit],
            [0, 0, 1],
        ]
    )
    width, height = (max(4, int(np.ceil(side * texels_per_unit))) for side in extent)
    return to_atlas, (height, width)


def sample_at_nodes(images: NDArray[np.uint8], nodes: tuple[int, int]) -> Tensor:
    """Sample images (T, H, W) at the nodes (ny, nx) of a grid, (T, ny, nx) in [0, 1].

    The images are blurred first, by a third of the spacing of the nodes.
    """
    height, width = images.shape[1:]
    x_step, y_step = (width - 1) / (nodes[1] - 1), (height - 1) / (nodes[0] - 1)
    matrix = np.array([[x_step, 0, 0], [0, y_step, 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    samples = []
    for image in images:
        blurred = cv2.GaussianBlur(image / np.float32(255), (0, 0), max(x_step, y_step) / 3)
        samples.append(cv2.warpAffine(blurred, matrix, nodes[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE))
    return torch.from_numpy(np.stack(samples))


def reduce_frames(video: Video, stride: int) -> Tensor:
    """Return the frames, averaged over squares of stride x stride pixels, (T, 3, H / stride, W / stride) uint8."""
    frames = video.frames.permute(0, 3, 1, 2)
    if stride == 1:
        return frames  # without a second copy of a long clip
    count, colors, height, width = frames.shape
    # Allocate the result first: small results between large temporary tensors would fragment the memory.
    reduced = frames.new_empty(count, colors, height // stride, width // stride)
    for frame, result in zip(frames, reduced, strict=True):
        result.copy_(functional.avg_pool2d(frame.float(), stride).round())
    return reduced


def average_atlases(
    model: GridModel, frames: Tensor, opacity: Tensor, stride: int, max_frames: int | None = None
) -> None:
    """Replace the model's atlases by averages of frames (T, 3, h, w), which are reduced by `stride`.

    opacity (F, T, ny, nx): the objects' opacity at the nodes of its grid. max_frames: most frames that are averaged,
    evenly spread; None: all.
    """
    map_side_by_side(
        lambda layer: average_layer(model, layer, frames, opacity, stride, max_frames),
        range(len(model.layers)),
        frames.device,
    )


def average_layer(
    model: GridModel, layer: int, frames: Tensor, opacity: Tensor, stride: int, max_frames: int | None = None
) -> None:
    """Replace the atlas of one layer; see `average_atlases`."""
    chosen_frames = evenly_spaced_indices(len(frames), max_frames or len(frames))

    def weigh_pixels(t: int) -> Tensor:
        """Return the squared visibility of frame t, because pixels that mix two layers say little about either."""
        return visibility(opacity[:, t])[layer].square()

    model.atlases[layer] = torch.nn.Parameter(
        average_atlas(model, layer, frames, weigh_pixels, stride, chosen_frames).contiguous()
    )
