"""Find shadows that move with an object, by comparing frames with the background's atlas, which knows none of them."""

import cv2
import numpy as np
from numpy.typing import NDArray

from media import blur
from rendering.blending import LUMA
from rendering.frames import Floats

Flags = NDArray[np.bool_]

# Lengths are shares of the long edge of the frame.
SMOOTHING = 1 / 200  # Standard deviation over which brightness is averaged before it is compared.
AMBIENT_SMOOTHING = 1 / 10  # The same for the light around a shadow, which changes slowly.
TOUCHING = 1 / 40  # Largest distance from the object of the nearest pixel of its shadow.
FEATHER = 1 / 150  # Width by which a shadow is enlarged, because its border is soft.
DARK_RATIO = 0.93  # Brightness relative to the light around it below which a pixel may be in a shadow.
DEEP_RATIO = 0.6  # The same below which a pixel is in a deep shadow, for instance under a car.
DEEP_THINNER = 6  # How many times thinner a deep shadow may be than another one.
LEAST_BRIGHTNESS = 0.02  # Brightness that is added to both sides of a ratio, so that dark pixels do not count much.
MAX_COLOR_CHANGE = 0.08  # Mean difference of colours in [0, 1] after the brightness is matched; a shadow changes less.
# A shadow covers at least the first share of the frame, or its deep part the second share of the object's area, because
# far objects have small shadows.
LEAST_AREA, LEAST_DEEP_AREA = 1e-3, 0.004
LEAST_DEEP_PX = 40  # A deep part has at least so many pixels, because a few may be dark by chance.


def find_shadow(source: Floats, background: Floats, is_object: Flags) -> tuple[Flags, Floats]:
    """Find the shadow that an object casts on the background of a frame.

    A shadow is a part that touches the object and is darker than the background's atlas says, but has its colours.

    source (H, W, 3): the frame. background (H, W, 3): the background's atlas in the frame, without any light.
    is_object (H, W). Returns the shadow (H, W) and the factor of light around it (H, W), which is what the light would
    be without the shadow.
    """
    long_edge = max(is_object.shape)
    is_visible = ~is_object
    ratio = smooth_ratio(source @ LUMA, background @ LUMA, is_visible, SMOOTHING * long_edge)
    ambient, is_dark = np.ones_like(ratio), np.zeros_like(is_object)
    for _ in range(2):  # The first round finds the dark part, the second leaves it out of the light around it.
        lit = is_visible & ~is_dark
        ambient = smooth_ratio(source @ LUMA, background @ LUMA, lit, AMBIENT_SMOOTHING * long_edge)
        is_dark = is_visible & (ratio < DARK_RATIO * ambient)
    matched = blur(background * ratio[..., None], SMOOTHING * long_edge)
    change = np.abs(matched - blur(source, SMOOTHING * long_edge)).mean(-1)
    candidate = is_dark & (change < MAX_COLOR_CHANGE)
    # Thin parts are where the averages mix two things, unless they are as dark as the ground under a car.
    side = 2 * int(np.ceil(2 * SMOOTHING * long_edge)) + 1
    wide = remove_thin_parts(candidate, side)
    deep = remove_thin_parts(candidate & (ratio < DEEP_RATIO * ambient), side // DEEP_THINNER)
    touching, deep = (parts_near(part, is_object, TOUCHING * long_edge) for part in (wide | deep, deep))
    if touching.mean() < LEAST_AREA and deep.sum() < max(LEAST_DEEP_PX, LEAST_DEEP_AREA * is_object.sum()):
        return np.zeros_like(is_object), ambient
    distance = distance_to(touching)
    # Remains at its border, where the averages mix it with what is lit.
    remains = is_dark & (distance <= TOUCHING * long_edge)
    return distance_to(touching | remains) <= FEATHER * long_edge, ambient


def remove_thin_parts(inside: Flags, width_px: int) -> Flags:
    """Remove the parts of a mask (H, W) that are thinner than a width in pixels."""
    side = max(1, width_px) | 1  # An even side would move the mask by a pixel.
    return cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_OPEN, np.ones((side, side), np.uint8)) > 0


def smooth_ratio(numerator: Floats, denominator: Floats, is_known: Flags, sigma_px: float) -> Floats:
    """Return the ratio of two images (H, W) after each is averaged over the known pixels around each pixel."""
    weight = is_known.astype(np.float32)
    top, bottom, total = (blur(image * weight, sigma_px) for image in (numerator, denominator, np.ones_like(weight)))
    return (top + LEAST_BRIGHTNESS * total + 1e-6) / (bottom + LEAST_BRIGHTNESS * total + 1e-6)


def parts_near(inside: Flags, other: Flags, distance_px: float) -> Flags:
    """Return the connected parts of a mask (H, W) that come nearer to another one than a distance in pixels."""
    is_near = distance_to(other) <= distance_px
    _, labels = cv2.connectedComponents(inside.astype(np.uint8))
    return np.isin(labels, np.unique(labels[inside & is_near])) & inside


def distance_to(inside: Flags) -> Floats:
    """Return the distance in pixels of each pixel to a mask (H, W); infinity if the mask is empty."""
    if not inside.any():
        return np.full(inside.shape, np.inf, np.float32)
    distance: NDArray = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5)
    return distance
