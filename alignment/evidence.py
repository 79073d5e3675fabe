"""Which pixels belong to the object: rough masks mended by what else is known of a pixel.

A detector's masks miss parts and whole frames, but they are right in most places. So they serve as labels from which
a clip learns how telling its own cues are: a pixel's motion against the background's and against the object's, its
difference from the background seen at other times, its colour. The cues' verdict, smoothed along the flow and fitted to
image edges (guided filter, He et al. 2010), gives better labels, from which the cues are learned again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.transforms import homogeneous
from unwrap_utils import BACKWARD, FORWARD, STEPS, Video

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

LONG_EDGE_PX = 192  # cues are weighed at this size: enough to decide, and fast
ROUNDS = 3
LIKELIHOOD_BINS = 20
LARGEST_LIKELIHOOD = 5.0  # of one cue, natural logarithm
LARGEST_VERDICT = 6.0
VERDICT_WEIGHT = 1.5  # of the cues together against the place
NEAR, NEAR_WEIGHT, FAR_WEIGHT = 1.0, 2.0, 0.3  # how doubt grows with the distance to the mask, in object sizes
UNCLEAR = (0.08, 0.03)  # object sizes around the labels' outline that teach nothing: in the first round, later
SMOOTHINGS = 3
MISSED = 0.3  # a mask whose object is this much smaller than usual is taken for missed
FORGETTING = 0.9  # per frame, of a mask carried along the flow
TAUGHT_PIXELS = 200_000
LEAST_AGREEMENT = 0.4  # IoU with the rough masks below which mending has gone astray
GUIDE_RADIUS_PX, GUIDE_EPS = 4, 1e-3
COLOR_BINS = (22, 32, 32)  # of L, a, b


@dataclass
class SmallClip:
    """A clip at the size at which cues are weighed, T frames of h x w pixels."""

    rgb: NDArray[np.uint8]  # (T, h, w, 3)
    flow: Floats  # (2, T, h, w, 2) pixels of this size
    flow_valid: Floats  # (2, T, h, w) share of valid pixels
    to_full: NDArray[np.float64]  # (3, 3) its pixels to those of the working size

    @property
    def grid(self) -> Floats:
        """(h, w, 2) pixel positions."""
        height, width = self.rgb.shape[1:3]
        return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)

    def reduced(self, transforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transforms (T, 3, 3) of full pixels as transforms of this clip's pixels."""
        return np.linalg.inv(self.to_full) @ transforms @ self.to_full

    def carried(self, values: Floats, direction: int, t: int) -> Floats:
        """What `values` (h, w) of the neighbouring frame show at the pixels of frame t."""
        ends = self.grid + self.flow[direction, t]
        return cv2.remap(values, ends, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def shrunk(values: NDArray, size: tuple[int, int]) -> NDArray:
    """An image (H, W, ...) at (width, height), averaged."""
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA)


def small_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) at which cues are weighed."""
    scale = min(1.0, LONG_EDGE_PX / max(height, width))
    return max(8, round(width * scale)), max(8, round(height * scale))


def small_clip(video: Video) -> SmallClip:
    """A video on the CPU, shrunk."""
    frames, height, width = video.size
    size = small_size(height, width)
    scale = np.array([width / size[0], height / size[1]])
    flow = np.zeros((2, frames, size[1], size[0], 2), np.float32)
    valid = np.zeros((2, frames, size[1], size[0]), np.float32)
    for direction in (FORWARD, BACKWARD):
        for t in range(frames):
            known = video.flow_valid[direction, t].numpy().astype(np.float32)
            moved = video.flow_steps[direction, t].numpy() * np.float32(video.flow_unit_px[direction, t])
            valid[direction, t] = shrunk(known, size)
            average = shrunk(moved * known[..., None], size) / np.maximum(valid[direction, t], 1e-3)[..., None]
            flow[direction, t] = average / scale
    to_full = np.diag([*scale, 1.0])
    to_full[:2, 2] = (scale - 1) / 2  # pixel centers
    rgb = np.stack([shrunk(frame, size) for frame in video.frames.numpy()])
    return SmallClip(rgb, flow, valid, to_full)


def motion_difference(clip: SmallClip, transforms: NDArray[np.float64]) -> Floats:
    """(T, h, w) pixels by which the flow differs from a layer's motion, mean of both directions; NaN if unknown."""
    frames = len(clip.rgb)
    total, count = np.zeros(clip.rgb.shape[:3], np.float32), np.zeros(clip.rgb.shape[:3], np.float32)
    here = homogeneous(clip.grid)
    for direction, step in enumerate(STEPS):
        for t in range(max(0, -step), min(frames, frames - step)):
            there = here @ (np.linalg.inv(transforms[t + step]) @ transforms[t]).T.astype(np.float32)
            miss = clip.grid + clip.flow[direction, t] - there[..., :2] / there[..., 2:]
            known = clip.flow_valid[direction, t] >= 0.5
            total[t] += np.where(known, np.sqrt(np.square(miss).sum(-1)), 0)
            count[t] += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def background_difference(clip: SmallClip, transforms: NDArray[np.float64], outside: Flags) -> Floats:
    """(T, h, w) how unlike the background seen at other times a pixel is, in its usual deviations; NaN if unknown.

    outside (T, h, w): pixels that surely show the background.
    """
    lab = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2LAB) for frame in clip.rgb]).astype(np.float32)
    frames, height, width = lab.shape[:3]
    corners = homogeneous(np.array([[0, 0], [width, 0], [0, height], [width, height]], float))
    places = corners @ transforms.transpose(0, 2, 1)
    places = np.median(places[..., :2] / places[..., 2:], axis=1)  # the frames' middles
    low, high = places.min(0) - [width, height], places.max(0) + [width, height]
    canvas = tuple(np.minimum(np.ceil(high - low), [6 * width, 6 * height]).astype(int))
    onto = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]]) @ transforms

    def unwrapped() -> Iterator[tuple[Floats, Floats]]:
        """Every frame on the canvas, and 1 where it surely shows the background; one at a time, warping is cheap."""
        for picture, sure, matrix in zip(lab, outside, onto, strict=True):
            known = cv2.warpPerspective(sure.astype(np.float32), matrix, canvas) > 0.99
            yield cv2.warpPerspective(picture, matrix, canvas), known[..., None].astype(np.float32)

    mean, count = averaged((color, known) for color, known in unwrapped())
    for _ in range(2):  # once more with what differs left out: a robust mean
        spread = averaged((np.abs(color - mean), known) for color, known in unwrapped())[0] + 1
        mean, _ = averaged((color, known / (1 + np.square((color - mean) / spread))) for color, known in unwrapped())
    result = np.empty((frames, height, width), np.float32)
    seen = (count[..., 0] >= 1).astype(np.float32)
    usual = spread.mean(-1)
    for t in range(frames):
        back = np.linalg.inv(onto[t])
        values = cv2.warpPerspective(np.dstack((mean, usual)), back, (width, height))
        there = cv2.warpPerspective(seen, back, (width, height)) > 0.99
        away = cv2.GaussianBlur(np.abs(lab[t] - values[..., :3]).mean(-1), (0, 0), 1)
        result[t] = np.where(there, away / (values[..., 3] + 3), np.nan)
    return result


def averaged(pictures: Iterable[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Weighted mean of pictures (h, w, C) with weights (h, w, 1 or C), and the sum of the weights."""
    total, weight = np.float32(0), np.float32(0)
    for picture, share in pictures:
        total, weight = total + picture * share, weight + share
    return total / np.maximum(weight, 1e-3), weight


def binned(values: Floats) -> NDArray[np.int32]:
    """Differences as numbers of bins, logarithmic; the unknown ones have a bin of their own."""
    edges = np.geomspace(0.05, 50, LIKELIHOOD_BINS)
    return np.where(np.isnan(values), LIKELIHOOD_BINS + 1, np.digitize(values, edges)).astype(np.int32)


def color_codes(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(T, h, w) number of the colour's bin in L, a, b."""
    lab = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2LAB) for frame in rgb]).astype(np.int32)
    steps = [256 // bins + (256 % bins > 0) for bins in COLOR_BINS]
    return (lab[..., 0] // steps[0] * COLOR_BINS[1] + lab[..., 1] // steps[1]) * COLOR_BINS[2] + lab[..., 2] // steps[2]


def log_likelihood_ratio(codes: NDArray[np.int32], inside: Flags, taught: Flags, is_color: bool) -> Floats:
    """(T, h, w): how much more often a bin occurs inside the labels than outside, natural logarithm, clipped."""
    from scipy.ndimage import gaussian_filter

    bins = int(np.prod(COLOR_BINS)) if is_color else LIKELIHOOD_BINS + 2
    shares = []
    for chosen in (taught & inside, taught & ~inside):
        counts = np.bincount(codes[chosen], minlength=bins).astype(float)
        if is_color:
            counts = gaussian_filter(counts.reshape(COLOR_BINS), 0.8).ravel()
        shares.append(counts / max(counts.sum(), 1) + (1e-6 if is_color else 1e-4))
    ratio = np.log(shares[0] / shares[1]).clip(-LARGEST_LIKELIHOOD, LARGEST_LIKELIHOOD)
    return ratio.astype(np.float32)[codes]


def logistic_weights(cues: Floats, labels: Flags, steps: int = 12) -> Floats:
    """Weights (C + 1,) of cues (N, C) and a constant that tell labels (N,) apart, both classes weighing the same."""
    inputs = np.concatenate((cues, np.ones_like(cues[:, :1])), axis=1).astype(np.float64)
    share = labels.mean().clip(1e-6, 1 - 1e-6)
    balance = np.where(labels, 0.5 / share, 0.5 / (1 - share))
    weights = np.zeros(inputs.shape[1])
    for _ in range(steps):
        guess = sigmoid(inputs @ weights)
        slope = inputs.T @ (balance * (guess - labels))
        bend = (inputs * (balance * guess * (1 - guess))[:, None]).T @ inputs
        weights -= np.linalg.solve(bend + 1e-3 * len(inputs) * np.eye(len(weights)), slope)
    return weights.astype(np.float32)


def sigmoid(values: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))


def outline_distance(inside: Flags) -> Floats:
    """(T, h, w) pixels to the outline, positive outside; far everywhere in a frame without any object."""
    far = float(sum(inside.shape[1:]))
    result = np.full(inside.shape, far, np.float32)
    for t in np.flatnonzero(inside.any((1, 2))):
        away = cv2.distanceTransform((~inside[t]).astype(np.uint8), cv2.DIST_L2, 3)
        result[t] = away - cv2.distanceTransform(inside[t].astype(np.uint8), cv2.DIST_L2, 3)
    return result


def carried_masks(clip: SmallClip, masks: Floats, known: Flags) -> Floats:
    """(T, h, w) mean of each pixel's mask over time, followed along the flow both ways; missed masks don't count."""
    frames = len(masks)
    total, count = masks * known[:, None, None], np.ones_like(masks) * known[:, None, None]
    for direction, order in ((BACKWARD, range(1, frames)), (FORWARD, range(frames - 2, -1, -1))):
        sums = np.zeros((2, *masks.shape[1:]), np.float32)
        for t in order:
            before = t + STEPS[direction]
            sums[0] += masks[before] * known[before]
            sums[1] += known[before]
            sums = np.stack([FORGETTING * clip.carried(each, direction, t) for each in sums])
            total[t] += sums[0]
            count[t] += sums[1]
    return total / np.maximum(count, 1e-3)


def smoothed_along_flow(clip: SmallClip, values: Floats) -> Floats:
    """Values (T, h, w) averaged with what the flow's ends show, several times."""
    frames = len(values)
    for _ in range(SMOOTHINGS):
        total, weight = values.copy(), np.ones_like(values)
        for direction, step in enumerate(STEPS):
            for t in range(max(0, -step), min(frames, frames - step)):
                valid = clip.flow_valid[direction, t]
                total[t] += valid * clip.carried(values[t + step], direction, t)
                weight[t] += valid
        values = total / weight
    return values


class GuidedFilter:
    """Fits a picture (h, w) to the edges of a guide (h, w, 3) uint8: in every window it is linear in the guide."""

    def __init__(self, guide: NDArray[np.uint8]):
        self.guide = guide.astype(np.float32) / 255
        self.mean = self.blur(self.guide)
        products = self.guide[..., :, None] * self.guide[..., None, :]
        covariance = self.blur(products.reshape(*guide.shape[:2], 9)).reshape(*guide.shape[:2], 3, 3)
        covariance -= self.mean[..., :, None] * self.mean[..., None, :]
        self.inverse = np.linalg.inv(covariance + GUIDE_EPS * np.eye(3, dtype=np.float32))

    @staticmethod
    def blur(values: Floats) -> Floats:
        side = 2 * GUIDE_RADIUS_PX + 1
        return cv2.blur(values, (side, side))

    def coefficients(self, picture: Floats) -> tuple[Floats, Floats]:
        """Slopes (h, w, 3) and offsets (h, w): the filtered picture is slope . guide + offset, at any size."""
        mean = self.blur(picture)
        together = self.blur(self.guide * picture[..., None]) - self.mean * mean[..., None]
        slope = np.einsum("yxij,yxj->yxi", self.inverse, together)
        return self.blur(slope), self.blur(mean - (slope * self.mean).sum(-1))

    def __call__(self, picture: Floats) -> Floats:
        slope, offset = self.coefficients(picture)
        return ((slope * self.guide).sum(-1) + offset).clip(0, 1)


@dataclass
class Evidence:
    """What is known of the object's pixels."""

    small: Floats  # (T, h, w) probability of belonging to the object
    filters: list[GuidedFilter]  # one per frame

    def at_size(self, rgb: NDArray[np.uint8], t: int) -> Floats:
        """(H, W) the probability in frame t, fitted to the edges of the larger frame (H, W, 3)."""
        size = rgb.shape[1::-1]
        slope, offset = (cv2.resize(each, size) for each in self.filters[t].coefficients(self.small[t]))
        return ((slope * (rgb / np.float32(255))).sum(-1) + offset).clip(0, 1)


def mended(
    video: Video, masks: NDArray[np.uint8], background: NDArray[np.float64], foreground: NDArray[np.float64]
) -> Evidence:
    """The object's probability at every pixel, from rough masks (T, H, W) uint8 and how both layers move (T, 3, 3)."""
    clip = small_clip(video)
    size = clip.rgb.shape[2:0:-1]
    rough = np.stack([shrunk(mask, size) for mask in masks]).astype(np.float32) / 255
    filters = [GuidedFilter(frame) for frame in clip.rgb]
    if not (rough > 0.5).any():
        return Evidence(rough, filters)
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (odd(0.2 * object_size(rough > 0.5)),) * 2)
    outside = np.stack([cv2.dilate(mask, reach) for mask in rough]) < 0.3
    background, foreground = clip.reduced(background), clip.reduced(foreground)
    cues = [
        binned(motion_difference(clip, background)),
        binned(motion_difference(clip, foreground)),
        binned(background_difference(clip, background, outside)),
        color_codes(clip.rgb),
    ]
    probability = rough
    for number in range(ROUNDS):
        found = one_round(clip, cues, probability, filters, UNCLEAR[min(number, 1)])
        if agreement(found > 0.5, rough > 0.5) < LEAST_AGREEMENT:
            break
        probability = found
    return Evidence(probability, filters)


def one_round(
    clip: SmallClip, cues: list[NDArray[np.int32]], probability: Floats, filters: list[GuidedFilter], unclear: float
) -> Floats:
    """Learn the cues from labels (T, h, w), and label anew."""
    inside = probability > 0.5
    size = object_size(inside)
    known = np.sqrt(inside.sum((1, 2))) > MISSED * size
    taught = known[:, None, None] & (np.abs(outline_distance(inside)) > unclear * size)
    likelihoods = np.stack(
        [log_likelihood_ratio(cue, inside, taught, index == len(cues) - 1) for index, cue in enumerate(cues)], axis=-1
    )
    chosen = np.flatnonzero(taught)
    chosen = np.random.default_rng(0).permutation(chosen)[:TAUGHT_PIXELS]
    weights = logistic_weights(likelihoods.reshape(-1, len(cues))[chosen], inside.ravel()[chosen])
    verdict = (likelihoods @ weights[:-1] + weights[-1]) * VERDICT_WEIGHT
    away = outline_distance(carried_masks(clip, probability, known) > 0.5) / (NEAR * size)
    doubt = NEAR_WEIGHT * away.clip(-1, 1) + FAR_WEIGHT * (away - 1).clip(0, 6)
    score = smoothed_along_flow(clip, verdict.clip(-LARGEST_VERDICT, LARGEST_VERDICT) - doubt)
    return np.stack([fit(frame) for fit, frame in zip(filters, sigmoid(score), strict=True)])


def object_size(inside: Flags) -> float:
    """Square root of the object's usual area, pixels; of the frames that show it."""
    areas = inside.sum((1, 2))
    return float(np.sqrt(np.median(areas[areas > 0]))) if (areas > 0).any() else 1.0


def odd(value: float) -> int:
    """The next odd number below, at least 1."""
    return max(1, int(value) // 2 * 2 + 1)


def agreement(found: Flags, expected: Flags) -> float:
    """IoU over the frames that expect an object."""
    frames = expected.any((1, 2))
    together = (found[frames] & expected[frames]).sum()
    return float(together / max((found[frames] | expected[frames]).sum(), 1))
