"""Images, videos, optical flow and clips on disk: many formats are read, a few are written."""

from media.files import fresh_folder, make_folder, write_atomically, write_text
from media.images import (
    IMAGE_SUFFIXES,
    Pixels,
    has_opacity,
    image_size,
    list_images,
    natural_key,
    open_image,
    read_edit,
    read_edit_with_mask,
    read_labels,
    read_mask,
    read_rgb,
    resize,
    resize_labels,
    to_8_bit,
    write_png,
)
from media.videos import PUBLISHED_FPS, VideoSet, VideoWriter

__all__ = [
    "IMAGE_SUFFIXES",
    "PUBLISHED_FPS",
    "Pixels",
    "VideoSet",
    "VideoWriter",
    "fresh_folder",
    "has_opacity",
    "image_size",
    "list_images",
    "make_folder",
    "natural_key",
    "open_image",
    "read_edit",
    "read_edit_with_mask",
    "read_labels",
    "read_mask",
    "read_rgb",
    "resize",
    "resize_labels",
    "to_8_bit",
    "write_atomically",
    "write_png",
    "write_text",
]
