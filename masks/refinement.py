"""Which pixels belong to the object: rough masks mended by what else is known of a pixel.

A detector's masks miss parts and whole frames, but they are right in most places. So they serve as labels from which
a clip learns how telling its own cues are: a pixel's motion against the background's and against the object's, its
difference from the background seen at other times, its colour. The cues' verdict, smoothed along the flow and fitted to
image edges (guided filter, He et al. 2010), gives better labels, from which the cues are learned again."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from masks.cues import Cue, Flags, Floats, SmallClip, color_cue, difference_cue, shrink
from masks.overlap import iou
from media.flows import BACKWARD, FORWARD, STEPS

ROUNDS = 3
RAREST = 1e-6  # share of the pixels that any cell is taken to hold
LARGEST_LIKELIHOOD = 5.0  # of one cue, natural logarithm
LARGEST_VERDICT = 6.0
VERDICT_WEIGHT = 1.5  # of the cues together against the place
NEAR, NEAR_WEIGHT, FAR_WEIGHT = 1.0, 2.0, 0.3  # how doubt grows with the distance to the mask, in object sizes
UNCLEAR = (0.08, 0.03)  # object sizes around the labels' outline that teach nothing: in the first round, later
TAUGHT_REACH, LEAST_REACH_PX = 0.6, 8.0  # object sizes: far pixels would outnumber a shadow's; doubt deals with them
SMOOTHINGS = 3
MISSED = 0.3  # a mask whose object is this much smaller than usual is taken for missed
FORGETTING = 0.9  # per frame, of a mask carried along the flow
TAUGHT_PIXELS = 200_000
LEAST_AGREEMENT = 0.4  # IoU with the rough masks below which mending has gone astray
SPECK, SPECK_ABOVE = 0.03, 0.2  # a part this much smaller than the largest is none of the object's; parts lie above
GUIDE_RADIUS_PX, GUIDE_EPS = 4, 1e-3


def log_likelihood_ratio(cue: Cue, inside: Flags, taught: Flags) -> Floats:
    """(T, h, w): how much more often a cell occurs inside the labels than outside, natural logarithm, clipped."""
    from scipy.ndimage import gaussian_filter

    shares = []
    for chosen in (taught & inside, taught & ~inside):
        counts = np.bincount(cue.codes[chosen], minlength=int(np.prod(cue.bins))).astype(float)
        counts = gaussian_filter(counts.reshape(cue.bins), cue.blur).ravel()
        shares.append(counts / max(counts.sum(), 1) + RAREST)
    ratio = np.log(shares[0] / shares[1]).clip(-LARGEST_LIKELIHOOD, LARGEST_LIKELIHOOD)
    return ratio.astype(np.float32)[cue.codes]


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


def propagate_masks(clip: SmallClip, masks: Floats, known: Flags) -> Floats:
    """(T, h, w) mean of each pixel's mask over time, followed along the flow both ways; missed masks don't count."""
    frames = len(masks)
    total, count = masks * known[:, None, None], np.ones_like(masks) * known[:, None, None]
    for direction, order in ((BACKWARD, range(1, frames)), (FORWARD, range(frames - 2, -1, -1))):
        sums = np.zeros((2, *masks.shape[1:]), np.float32)
        for t in order:
            before = t + STEPS[direction]
            sums[0] += masks[before] * known[before]
            sums[1] += known[before]
            sums = np.stack([FORGETTING * clip.warp_from_neighbour(each, direction, t) for each in sums])
            total[t] += sums[0]
            count[t] += sums[1]
    return total / np.maximum(count, 1e-3)


def smooth_along_flow(clip: SmallClip, values: Floats) -> Floats:
    """Values (T, h, w) averaged with what the flow's ends show, several times."""
    frames = len(values)
    for _ in range(SMOOTHINGS):
        total, weight = values.copy(), np.ones_like(values)
        for direction, step in enumerate(STEPS):
            for t in range(max(0, -step), min(frames, frames - step)):
                valid = clip.flow_valid[direction, t]
                total[t] += valid * clip.warp_from_neighbour(values[t + step], direction, t)
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
class RefinedMasks:
    """What is known of the object's pixels."""

    small: Floats  # (T, h, w) probability of belonging to the object
    filters: list[GuidedFilter]  # one per frame

    def upsample(self, rgb: NDArray[np.uint8], t: int) -> Floats:
        """(H, W) the probability in frame t, fitted to the edges of the larger frame (H, W, 3)."""
        size = rgb.shape[1::-1]
        slope, offset = (cv2.resize(each, size) for each in self.filters[t].coefficients(self.small[t]))
        return ((slope * (rgb / np.float32(255))).sum(-1) + offset).clip(0, 1)


def refine_masks(
    clip: SmallClip, masks: NDArray[np.uint8], background: NDArray[np.float64], foreground: NDArray[np.float64]
) -> RefinedMasks:
    """The object's probability at every pixel, from rough masks (T, H, W) uint8 and how both layers move (T, 3, 3).

    masks and transforms are of the working size, clip is the video shrunk.
    """
    size = clip.rgb.shape[2:0:-1]
    rough = np.stack([shrink(mask, size) for mask in masks]).astype(np.float32) / 255
    filters = [GuidedFilter(frame) for frame in clip.rgb]
    if not (rough > 0.5).any():
        return RefinedMasks(rough, filters)
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (odd_at_most(0.2 * object_size(rough > 0.5)),) * 2)
    outside = np.stack([cv2.dilate(mask, reach) for mask in rough]) < 0.3
    motions = clip.reduce_transforms(background), clip.reduce_transforms(foreground)
    cues = [difference_cue(clip, *motions, outside), color_cue(clip)]
    probability = rough
    for number in range(ROUNDS):
        found = refine_once(clip, cues, probability, rough > 0.5, filters, UNCLEAR[min(number, 1)])
        if agreement(found > 0.5, rough > 0.5) < LEAST_AGREEMENT:
            break
        probability = found
    return RefinedMasks(probability, filters)


def refine_once(
    clip: SmallClip, cues: list[Cue], probability: Floats, rough: Flags, filters: list[GuidedFilter], unclear: float
) -> Floats:
    """Learn the cues from labels (T, h, w), and label anew; what the rough masks (T, h, w) hold is no speck."""
    inside = probability > 0.5
    size = object_size(inside)
    known = np.sqrt(inside.sum((1, 2))) > MISSED * size
    distance = outline_distance(inside)
    reach = max(TAUGHT_REACH * size, LEAST_REACH_PX)
    taught = known[:, None, None] & (np.abs(distance) > unclear * size) & (distance < reach)
    likelihoods = np.stack([log_likelihood_ratio(cue, inside, taught) for cue in cues], axis=-1)
    chosen = np.flatnonzero(taught)
    chosen = np.random.default_rng(0).permutation(chosen)[:TAUGHT_PIXELS]
    weights = logistic_weights(likelihoods.reshape(-1, len(cues))[chosen], inside.ravel()[chosen])
    verdict = (likelihoods @ weights[:-1] + weights[-1]) * VERDICT_WEIGHT
    away = outline_distance(propagate_masks(clip, probability, known) > 0.5) / (NEAR * size)
    doubt = NEAR_WEIGHT * away.clip(-1, 1) + FAR_WEIGHT * (away - 1).clip(0, 6)
    score = smooth_along_flow(clip, verdict.clip(-LARGEST_VERDICT, LARGEST_VERDICT) - doubt)
    fitted = (fit(frame) for fit, frame in zip(filters, sigmoid(score), strict=True))
    return np.stack([remove_specks(*each) for each in zip(fitted, rough, strict=True)])


def remove_specks(probability: Floats, kept: Flags) -> Floats:
    """A frame's probability (h, w) without what lies apart from the object and is tiny against it.

    Parts that hold any pixel of `kept` (h, w) stay: a ball beside its player.
    """
    count, parts, facts, _ = cv2.connectedComponentsWithStats((probability > SPECK_ABOVE).astype(np.uint8))
    if count < 3:  # nothing, or one part
        return probability
    areas = facts[:, cv2.CC_STAT_AREA]
    is_speck = areas < SPECK * areas[1:].max()
    is_speck[0] = False  # around the parts
    is_speck[np.unique(parts[kept])] = False
    return np.where(is_speck[parts], 0, probability).astype(np.float32)


def object_size(inside: Flags) -> float:
    """Square root of the object's usual area, pixels; of the frames that show it."""
    areas = inside.sum((1, 2))
    return float(np.sqrt(np.median(areas[areas > 0]))) if (areas > 0).any() else 1.0


def odd_at_most(value: float) -> int:
    """The next odd number below, at least 1."""
    return max(1, int(value) // 2 * 2 + 1)


def agreement(found: Flags, expected: Flags) -> float:
    """IoU of two stacks of masks (T, h, w), over the frames in which an object is expected."""
    frames = expected.any((1, 2))
    return iou(found[frames], expected[frames], if_empty=0.0)
