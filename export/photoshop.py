"""Photoshop files (.psd): images with layers, which Photoshop, Affinity Photo, Krita and GIMP open."""

from pathlib import Path

import numpy as np
from PIL import ImageCms

import media
from rendering.frames import Floats


def write_psd(path: Path, layers: dict[str, Floats], bits: int) -> None:
    """Write RGBA layers (H, W, 4) in [0, 1], given by name, the uppermost first. bits: 8 or 16 per channel."""
    from psd_tools import PSDImage
    from psd_tools.constants import Resource
    from psd_tools.psd.image_resources import ImageResource

    height, width = next(iter(layers.values())).shape[:2]
    document = PSDImage.new("RGB", (width, height), depth=16 if bits == 16 else 8)
    # Without a profile, Krita takes colours of 16 bits for linear light.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    document.image_resources[Resource.ICC_PROFILE] = ImageResource(key=Resource.ICC_PROFILE, data=profile)
    for name, picture in reversed(layers.items()):
        document.create_pixel_layer_from_array(np.ascontiguousarray(picture, np.float32), name=name)
    with media.write_atomically(path) as temporary, temporary.open("wb") as file:
        document.save(file)
