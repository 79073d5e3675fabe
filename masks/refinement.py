"""Refine rough masks with everything else that is known of a pixel.

A detector's masks miss parts of the object and whole frames, but most of their pixels are right, and their mistakes
change from frame to frame. So the masks of many frames, propagated along the flow, vote for each pixel. The cues of the
clip are learned from the pixels on which the masks agree: the pixel's motion compared with the background's and the
object's, its difference from the background's mean colour, and its colour. Vote and cues are added as log-odds, as in
a naive Bayes classifier. So weak cues never overrule masks that agree: a shadow or a reflection moves with the object,
but no mask shows it. The score is smoothed along the flow and fitted to the edges of the image (guided filter, He et
al. 2010)."""

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from masks.cues import Cue, Flags, Floats, SmallClip, color_cue, difference_cue, shrink
from masks.overlap import iou
from media.flows import BACKWARD, FORWARD, STEPS
from parallel.side_by_side import map_side_by_side, run_side_by_side

ROUNDS = 2  # Number of times that the cues are learned.
MIN_BIN_FREQUENCY = 1e-6  # Share of the pixels that is added to each bin of a histogram, so that none is empty.
MAX_LOG_LIKELIHOOD = 5.0  # Largest log-likelihood ratio of one cue, natural logarithm.
# Sum of the cues' log-likelihood ratios, up to its sign, that counts as nothing, because cues of an outline, a shadow
# or a reflection mix the object's and the background's; weight of what exceeds it.
WEAK_LOG_LIKELIHOOD, CUE_WEIGHT = 2.0, 2.0
# Limits of the score of the cues. Detectors often miss a part of the object in all frames, so clear cues may add one.
# They rarely show a part that is not there, so cues alone may not remove what all masks show.
MIN_CUE_SCORE, MAX_CUE_SCORE = -2.5, 6.0
PRIOR_VOTES = 0.5  # Number of masks that are added to each vote, half for and half against (Laplace smoothing).
AGREED = 0.15  # The masks agree on a pixel if its vote is below this value or above 1 minus this value.
# If the cues contradict the vote of a pixel by this sum of log-likelihood ratios, the cues are not learned from it in
# the next round: all masks may miss the same part of the object.
CONTRADICTED = 2.5
# Distance to the rough mask, in object sizes and at least in pixels, up to which pixels are used to learn the cues.
# Pixels farther away would outnumber those of a shadow. An object size is the square root of the object's usual area.
TRAINING_DISTANCE, MIN_TRAINING_DISTANCE_PX = 0.6, 8.0
SMOOTHING_STEPS = 3  # Number of times that scores are averaged along the flow.
MISSED_SIZE = 0.3  # Smallest object of a frame, in object sizes; with a smaller one its mask counts as missed.
PROPAGATION_DECAY = 0.9  # Factor per frame of the weight of a mask that is propagated along the flow.
MIN_AGREEMENT = 0.4  # IoU with the rough masks below which the refinement has failed and its result is not used.
SPECK_AREA = 0.03  # Share of the largest part's area below which another part is a speck.
SPECK_PROBABILITY = 0.2  # Probability above which pixels belong to a part.
GUIDE_RADIUS_PX = 3  # Pixels: radius of the windows of the guided filter.
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


def sigmoid(values: NDArray) -> NDArray:
    """Return the logistic function of values; arguments beyond +-30 are limited to it."""
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))


def vote_along_flow(clip: SmallClip, masks: Floats, is_known: Flags) -> Floats:
    """Return for each pixel (T, h, w) the mean of the masks (T, h, w) of all frames, propagated along valid flow.

    The weight of a mask decreases with its distance in time. is_known: (T,), False for frames whose mask was missed;
    these have weight 0. The fewer masks reach a pixel, the nearer is its mean to one half.
    """
    frames = len(masks)
    total, total_weight = masks * is_known[:, None, None], np.ones_like(masks) * is_known[:, None, None]
    for direction, order in ((BACKWARD, range(1, frames)), (FORWARD, range(frames - 2, -1, -1))):
        sums = np.zeros((2, *masks.shape[1:]), np.float32)  # of masks and of weights
        for t in order:
            neighbour = t + STEPS[direction]
            sums[0] += masks[neighbour] * is_known[neighbour]
            sums[1] += is_known[neighbour]
            weight = PROPAGATION_DECAY * clip.flow_valid[direction, t]
            sums = weight * np.stack([clip.warp_from_neighbour(image, direction, t) for image in sums])
            total[t] += sums[0]
            total_weight[t] += sums[1]
    return (total + PRIOR_VOTES / 2) / (total_weight + PRIOR_VOTES)


def smooth_along_flow(clip: SmallClip, values: Floats) -> Floats:
    """Average values (T, h, w) with those of the neighbouring frames at the ends of the flow, several times."""
    for _ in range(SMOOTHING_STEPS):
        averaged = map_side_by_side(partial(average_with_neighbours, clip, values), range(len(values)))
        values = np.stack(averaged)
    return values


def average_with_neighbours(clip: SmallClip, values: Floats, t: int) -> Floats:
    """Return the average (h, w) of the values (T, h, w) of frame t and of those at the ends of its valid flow."""
    total, weight = values[t].copy(), np.ones_like(values[t])
    for direction, step in enumerate(STEPS):
        if 0 <= t + step < len(values):
            valid = clip.flow_valid[direction, t]
            total += valid * clip.warp_from_neighbour(values[t + step], direction, t)
            weight += valid
    return total / weight


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
        self.inverse = invert_symmetric_3x3(covariance + GUIDE_EPS * np.eye(3, dtype=np.float32))

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


def invert_symmetric_3x3(matrices: Floats) -> Floats:
    """Return the inverses of symmetric matrices (..., 3, 3), by cofactors, which is faster than np.linalg.inv."""
    first, second, third = np.moveaxis(matrices, -2, 0)
    cofactors = np.stack((np.cross(second, third), np.cross(third, first), np.cross(first, second)), axis=-2)
    return cofactors / (first * cofactors[..., 0, :]).sum(-1)[..., None, None]


@dataclass
class RefinedMasks:
    """Refined masks of an object, as probabilities at the reduced size."""

    probability: Floats  # (T, h, w) probability that a pixel belongs to the object
    guides: NDArray[np.uint8]  # (T, h, w, 3) the frames at the reduced size

    def upsample(self, rgb: NDArray[np.uint8], t: int) -> Floats:
        """Return the probability (H, W) in frame t at the size of `rgb` (H, W, 3), fitted to the edges of `rgb`."""
        size = rgb.shape[1::-1]
        coefficients = GuidedFilter(self.guides[t]).coefficients(self.probability[t])
        slope, offset = (cv2.resize(image, size) for image in coefficients)
        return ((slope * (rgb / np.float32(255))).sum(-1) + offset).clip(0, 1)

    def mask(self, rgb: NDArray[np.uint8], t: int) -> NDArray[np.uint8]:
        """Return the mask (H, W), 0 or 255, of frame t at the size of `rgb` (H, W, 3)."""
        return np.where(self.upsample(rgb, t) > 0.5, 255, 0).astype(np.uint8)


def refine_masks(
    clip: SmallClip,
    masks: NDArray[np.uint8],
    background: Floats,
    foreground: Floats,
    min_cue_score: float = MIN_CUE_SCORE,
) -> RefinedMasks:
    """Refine the rough masks (T, H, W) of an object.

    If the result agrees too little with the rough masks, these are returned.

    clip: the reduced video. background, foreground: transforms (T, 3, 3) of the background and of the object, for
    pixels of the working size, as the masks. min_cue_score: how surely the cues may remove what all masks show.
    """
    size = clip.rgb.shape[2:0:-1]
    rough = np.stack([shrink(mask, size) for mask in masks]).astype(np.float32) / 255
    inside = rough > 0.5
    if not inside.any():
        return RefinedMasks(rough, clip.rgb)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (odd_kernel_size(0.2 * object_size(inside)),) * 2)
    is_background = np.stack([cv2.dilate(mask, kernel) for mask in rough]) < 0.3
    motions = clip.reduce_transforms(background), clip.reduce_transforms(foreground)
    cues = run_side_by_side(lambda: difference_cue(clip, *motions, is_background), lambda: color_cue(clip))
    is_known = np.sqrt(inside.sum((1, 2))) > MISSED_SIZE * object_size(inside)
    vote = vote_along_flow(clip, rough, is_known)
    evidence = weigh_cues(cues, vote, pixels_near_masks(inside) & is_known[:, None, None])
    score = smooth_along_flow(clip, cue_score(evidence, min_cue_score) + np.log(vote / (1 - vote)))
    probability = sigmoid(score)
    kept = inside | find_largest_part(probability)
    probability = np.stack([remove_specks(frame, keep) for frame, keep in zip(probability, kept, strict=True)])
    failed = agreement(probability > 0.5, inside) < MIN_AGREEMENT
    return RefinedMasks(rough if failed else probability, clip.rgb)


def pixels_near_masks(inside: Flags) -> Flags:
    """Return which pixels (T, h, w) are inside the masks or so near that the cues are learned from them."""
    largest_distance = max(TRAINING_DISTANCE * object_size(inside), MIN_TRAINING_DISTANCE_PX)

    def is_near(mask: Flags) -> Flags:
        return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3) < largest_distance)

    return np.stack(map_side_by_side(is_near, inside))


def weigh_cues(cues: list[Cue], vote: Floats, is_near: Flags) -> Floats:
    """Learn the cues from pixels on which the masks agree, and return what they say of each pixel (T, h, w).

    It is the sum of the cues' log-likelihood ratios. vote (T, h, w): mean of the masks along the flow, 0 to 1. is_near:
    pixels (T, h, w) from which the cues may be learned.
    """
    inside = vote > 0.5
    is_training_pixel = is_near & ((vote < AGREED) | (vote > 1 - AGREED))
    evidence: Floats = np.zeros(vote.shape, np.float32)
    for _ in range(ROUNDS):
        is_contradicted = ~inside & (evidence > CONTRADICTED)
        chosen = is_training_pixel & ~is_contradicted
        ratios = map_side_by_side(partial(log_likelihood_ratio, inside=inside, is_training_pixel=chosen), cues)
        evidence = np.sum(ratios, axis=0)
    return evidence


def cue_score(evidence: Floats, min_cue_score: float = MIN_CUE_SCORE) -> Floats:
    """Return the score of the cues' summed log-likelihood ratios; weak evidence counts as none."""
    strong = np.sign(evidence) * np.maximum(np.abs(evidence) - WEAK_LOG_LIKELIHOOD, 0)
    return (CUE_WEIGHT * strong).clip(min_cue_score, MAX_CUE_SCORE)


def find_largest_part(probability: Floats) -> Flags:
    """Return the largest part (T, h, w) of an object that is connected in space or from frame to frame.

    A head that is separate from its body in some frames belongs to it in others, so it is no speck.
    """
    from scipy.ndimage import label

    labels, _ = label(probability > SPECK_PROBABILITY, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((labels == sizes.argmax()) & (labels > 0))


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
