"""Refine rough masks with everything else that is known of a pixel.

A detector's masks miss parts of the object and whole frames, but most of their pixels are right. So they serve as
labels from which the cues of a clip are learned: the pixel's motion compared with the background's and the object's,
its difference from the background's mean colour, and its colour. The score of the cues is smoothed along the flow and
fitted to the edges of the image (guided filter, He et al. 2010). This gives better labels, from which the cues are
learned again."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from masks.cues import Cue, Flags, Floats, SmallClip, color_cue, difference_cue, shrink
from masks.overlap import iou
from media.flows import BACKWARD, FORWARD, STEPS

# "Object sizes" below are multiples of the square root of the object's usual area.
ROUNDS = 3  # Number of times that the cues are learned.
MIN_BIN_FREQUENCY = 1e-6  # Share of the pixels that is added to each bin of a histogram, so that none is empty.
MAX_LOG_LIKELIHOOD = 5.0  # Largest log-likelihood ratio of one cue, natural logarithm.
MAX_CUE_SCORE = 6.0  # Largest score of all cues together.
CUE_WEIGHT = 1.5  # Weight of the cues against the distance to the mask.
NEAR_DISTANCE = 1.0  # Distance to the mask, in object sizes, up to which the penalty grows fast.
NEAR_PENALTY, FAR_PENALTY = 2.0, 0.3  # Growth of the penalty per NEAR_DISTANCE, up to NEAR_DISTANCE and beyond it.
# Distance to the labels' outline, in object sizes, below which pixels are not used to learn the cues, because the
# outline is uncertain: in the first round, and later.
OUTLINE_MARGINS = (0.08, 0.03)
# Distance to the mask, in object sizes and at least in pixels, up to which pixels are used to learn the cues. Pixels
# farther away would outnumber those of a shadow; the penalty for the distance excludes them.
TRAINING_DISTANCE, MIN_TRAINING_DISTANCE_PX = 0.6, 8.0
SMOOTHING_STEPS = 3  # Number of times that scores are averaged along the flow.
MISSED_SIZE = 0.3  # Smallest object of a frame, in object sizes; with a smaller one its mask counts as missed.
PROPAGATION_DECAY = 0.9  # Factor per frame of the weight of a mask that is propagated along the flow.
MAX_TRAINING_PIXELS = 200_000  # Most pixels from which the weights of the cues are learned.
MIN_AGREEMENT = 0.4  # IoU with the rough masks below which the refinement has failed and its result is not used.
SPECK_AREA = 0.03  # Share of the largest part's area below which another part is a speck.
SPECK_PROBABILITY = 0.2  # Probability above which pixels belong to a part.
GUIDE_RADIUS_PX = 4  # Pixels: radius of the windows of the guided filter.
GUIDE_EPS = 1e-3  # Regularisation of the guided filter, as a variance of colours in [0, 1].


def log_likelihood_ratio(cue: Cue, inside: Flags, is_training_pixel: Flags) -> Floats:
    """Return for each pixel (T, h, w) how much more frequent its bin of the cue is inside the labels than outside.

    It is the natural logarithm of the ratio of frequencies, limited to +-MAX_LOG_LIKELIHOOD.

    inside: labels (T, h, w). is_training_pixel: (T, h, w), the pixels from which the frequencies are counted.
    """
    from scipy.ndimage import gaussian_filter

    frequencies = []
    for mask in (is_training_pixel & inside, is_training_pixel & ~inside):
        counts = np.bincount(cue.bin_indices[mask], minlength=int(np.prod(cue.bin_counts))).astype(float)
        counts = gaussian_filter(counts.reshape(cue.bin_counts), cue.blur).ravel()
        frequencies.append(counts / max(counts.sum(), 1) + MIN_BIN_FREQUENCY)
    ratio = np.log(frequencies[0] / frequencies[1]).clip(-MAX_LOG_LIKELIHOOD, MAX_LOG_LIKELIHOOD)
    return ratio.astype(np.float32)[cue.bin_indices]


def logistic_weights(cues: Floats, labels: Flags, steps: int = 12) -> Floats:
    """Fit a logistic regression of labels (N,) on cues (N, C) by Newton steps.

    Returns the weights (C + 1,) of the cues and of a constant. Both classes have the same total weight in the fit.
    """
    inputs = np.concatenate((cues, np.ones_like(cues[:, :1])), axis=1).astype(np.float64)
    positive_share = labels.mean().clip(1e-6, 1 - 1e-6)
    balance = np.where(labels, 0.5 / positive_share, 0.5 / (1 - positive_share))
    weights = np.zeros(inputs.shape[1])
    for _ in range(steps):
        prediction = sigmoid(inputs @ weights)
        gradient = inputs.T @ (balance * (prediction - labels))
        hessian = (inputs * (balance * prediction * (1 - prediction))[:, None]).T @ inputs
        weights -= np.linalg.solve(hessian + 1e-3 * len(inputs) * np.eye(len(weights)), gradient)
    return weights.astype(np.float32)


def sigmoid(values: NDArray) -> NDArray:
    """Return the logistic function of values; arguments beyond +-30 are limited to it."""
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))


def outline_distance(inside: Flags) -> Floats:
    """Return the distance (T, h, w) in pixels to the outline of masks (T, h, w), positive outside and negative inside.

    In frames without an object it is height plus width everywhere.
    """
    distance = np.full(inside.shape, float(sum(inside.shape[1:])), np.float32)
    for t in np.flatnonzero(inside.any((1, 2))):
        distance_outside = cv2.distanceTransform((~inside[t]).astype(np.uint8), cv2.DIST_L2, 3)
        distance[t] = distance_outside - cv2.distanceTransform(inside[t].astype(np.uint8), cv2.DIST_L2, 3)
    return distance


def propagate_masks(clip: SmallClip, masks: Floats, is_known: Flags) -> Floats:
    """Average masks (T, h, w) over time, propagated along the flow in both directions.

    The weight of a mask decreases with its distance in time. is_known: (T,), False for frames whose mask was missed;
    these have weight 0.
    """
    frames = len(masks)
    total, total_weight = masks * is_known[:, None, None], np.ones_like(masks) * is_known[:, None, None]
    for direction, order in ((BACKWARD, range(1, frames)), (FORWARD, range(frames - 2, -1, -1))):
        sums = np.zeros((2, *masks.shape[1:]), np.float32)  # of masks and of weights
        for t in order:
            neighbour = t + STEPS[direction]
            sums[0] += masks[neighbour] * is_known[neighbour]
            sums[1] += is_known[neighbour]
            sums = np.stack([PROPAGATION_DECAY * clip.warp_from_neighbour(image, direction, t) for image in sums])
            total[t] += sums[0]
            total_weight[t] += sums[1]
    return total / np.maximum(total_weight, 1e-3)


def smooth_along_flow(clip: SmallClip, values: Floats) -> Floats:
    """Average values (T, h, w) with those of the neighbouring frames at the ends of the flow, several times."""
    frames = len(values)
    for _ in range(SMOOTHING_STEPS):
        total, weight = values.copy(), np.ones_like(values)
        for direction, step in enumerate(STEPS):
            for t in range(max(0, -step), min(frames, frames - step)):
                valid = clip.flow_valid[direction, t]
                total[t] += valid * clip.warp_from_neighbour(values[t + step], direction, t)
                weight[t] += valid
        values = total / weight
    return values


class GuidedFilter:
    """Fit images (h, w) to the edges of a guide image (h, w, 3) uint8 (He et al. 2010).

    In each window the filtered image is a linear function of the guide.
    """

    def __init__(self, guide: NDArray[np.uint8]):
        self.guide = guide.astype(np.float32) / 255
        self.mean = self.box_blur(self.guide)
        products = self.guide[..., :, None] * self.guide[..., None, :]
        covariance = self.box_blur(products.reshape(*guide.shape[:2], 9)).reshape(*guide.shape[:2], 3, 3)
        covariance -= self.mean[..., :, None] * self.mean[..., None, :]
        self.inverse = np.linalg.inv(covariance + GUIDE_EPS * np.eye(3, dtype=np.float32))

    @staticmethod
    def box_blur(values: Floats) -> Floats:
        """Return the means of an image (h, w[, C]) over square windows."""
        side = 2 * GUIDE_RADIUS_PX + 1
        means: NDArray = cv2.blur(values, (side, side))
        return means

    def coefficients(self, image: Floats) -> tuple[Floats, Floats]:
        """Return the slopes (h, w, 3) and offsets (h, w) for an image (h, w).

        The filtered image is the dot product of slope and guide plus the offset. Slopes and offsets may be resized
        first, to filter at the size of a larger guide.
        """
        mean = self.box_blur(image)
        covariance = self.box_blur(self.guide * image[..., None]) - self.mean * mean[..., None]
        slope = np.einsum("yxij,yxj->yxi", self.inverse, covariance)
        return self.box_blur(slope), self.box_blur(mean - (slope * self.mean).sum(-1))

    def __call__(self, image: Floats) -> Floats:
        """Return the filtered image (h, w), limited to [0, 1]."""
        slope, offset = self.coefficients(image)
        return ((slope * self.guide).sum(-1) + offset).clip(0, 1)


@dataclass
class RefinedMasks:
    """Refined masks of an object, as probabilities at the reduced size."""

    probability: Floats  # (T, h, w) probability that a pixel belongs to the object
    filters: list[GuidedFilter]  # one per frame

    def upsample(self, rgb: NDArray[np.uint8], t: int) -> Floats:
        """Return the probability (H, W) in frame t at the size of `rgb` (H, W, 3), fitted to the edges of `rgb`."""
        size = rgb.shape[1::-1]
        slope, offset = (cv2.resize(image, size) for image in self.filters[t].coefficients(self.probability[t]))
        return ((slope * (rgb / np.float32(255))).sum(-1) + offset).clip(0, 1)


def refine_masks(clip: SmallClip, masks: NDArray[np.uint8], background: Floats, foreground: Floats) -> RefinedMasks:
    """Refine the rough masks (T, H, W) of an object.

    If the result agrees too little with the rough masks, that of the round before is returned.

    clip: the reduced video. background, foreground: transforms (T, 3, 3) of the background and of the object, for
    pixels of the working size, as the masks.
    """
    size = clip.rgb.shape[2:0:-1]
    rough = np.stack([shrink(mask, size) for mask in masks]).astype(np.float32) / 255
    filters = [GuidedFilter(frame) for frame in clip.rgb]
    if not (rough > 0.5).any():
        return RefinedMasks(rough, filters)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (odd_kernel_size(0.2 * object_size(rough > 0.5)),) * 2)
    is_background = np.stack([cv2.dilate(mask, kernel) for mask in rough]) < 0.3
    motions = clip.reduce_transforms(background), clip.reduce_transforms(foreground)
    cues = [difference_cue(clip, *motions, is_background), color_cue(clip)]
    probability: Floats = rough
    for index in range(ROUNDS):
        refined = refine_once(clip, cues, probability, rough > 0.5, filters, OUTLINE_MARGINS[min(index, 1)])
        if agreement(refined > 0.5, rough > 0.5) < MIN_AGREEMENT:
            break
        probability = refined
    return RefinedMasks(probability, filters)


def refine_once(
    clip: SmallClip,
    cues: list[Cue],
    probability: Floats,
    rough: Flags,
    filters: list[GuidedFilter],
    outline_margin: float,
) -> Floats:
    """Learn the cues from labels and return the probability (T, h, w) that follows from them.

    probability: (T, h, w), the labels, inside above 0.5. rough: the rough masks (T, h, w); parts that touch them are
    not removed as specks. filters: one per frame. outline_margin: distance to the labels' outline, in object sizes,
    below which pixels are not used for learning.
    """
    inside = probability > 0.5
    size = object_size(inside)
    is_known = np.sqrt(inside.sum((1, 2))) > MISSED_SIZE * size
    distance = outline_distance(inside)
    largest_distance = max(TRAINING_DISTANCE * size, MIN_TRAINING_DISTANCE_PX)
    is_training_pixel = (
        is_known[:, None, None] & (np.abs(distance) > outline_margin * size) & (distance < largest_distance)
    )
    ratios = np.stack([log_likelihood_ratio(cue, inside, is_training_pixel) for cue in cues], axis=-1)
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(is_training_pixel))[:MAX_TRAINING_PIXELS]
    weights = logistic_weights(ratios.reshape(-1, len(cues))[chosen], inside.ravel()[chosen])
    cue_score = (ratios @ weights[:-1] + weights[-1]) * CUE_WEIGHT
    mask_distance = outline_distance(propagate_masks(clip, probability, is_known) > 0.5) / (NEAR_DISTANCE * size)
    penalty = NEAR_PENALTY * mask_distance.clip(-1, 1) + FAR_PENALTY * (mask_distance - 1).clip(0, 6)
    score = smooth_along_flow(clip, cue_score.clip(-MAX_CUE_SCORE, MAX_CUE_SCORE) - penalty)
    filtered = (apply(frame) for apply, frame in zip(filters, sigmoid(score), strict=True))
    return np.stack([remove_specks(frame, keep) for frame, keep in zip(filtered, rough, strict=True)])


def remove_specks(probability: Floats, keep: Flags) -> Floats:
    """Set the probability (h, w) of a frame to 0 in specks: parts that are tiny compared with the largest part.

    Parts with any pixel in the mask `keep` (h, w) are not specks, for example a ball beside its player.
    """
    count, labels, statistics, _ = cv2.connectedComponentsWithStats((probability > SPECK_PROBABILITY).astype(np.uint8))
    if count < 3:  # at most one part besides the surroundings, which are part 0
        return probability
    areas = statistics[:, cv2.CC_STAT_AREA]
    is_speck = areas < SPECK_AREA * areas[1:].max()
    is_speck[0] = False
    is_speck[np.unique(labels[keep])] = False
    return np.where(is_speck[labels], 0, probability).astype(np.float32)


def object_size(inside: Flags) -> float:
    """Return the square root of the object's median area in pixels, over the frames (T, h, w) that show it; else 1."""
    areas = inside.sum((1, 2))
    return float(np.sqrt(np.median(areas[areas > 0]))) if (areas > 0).any() else 1.0


def odd_kernel_size(value: float) -> int:
    """Return an odd kernel size near a value: the value rounded down, plus 1 if that is even; at least 1."""
    return max(1, int(value) // 2 * 2 + 1)


def agreement(masks: Flags, expected: Flags) -> float:
    """Return the IoU of two stacks of masks (T, h, w), over the frames in which the expected mask is not empty."""
    frames = expected.any((1, 2))
    return iou(masks[frames], expected[frames], if_empty=0.0)
