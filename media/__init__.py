"""Images, videos, optical flow and clips on disk: many formats are read, a few are written."""

from media.depth import encode_picture, from_display, show_in_8_bit, to_8_bit, to_display
from media.files import fresh_folder, make_folder, write_atomically, write_text
from media.images import (
    IMAGE_SUFFIXES,
    Pixels,
    blur,
    explain_empty_folder,
    has_opacity,
    image_size,
    list_images,
    natural_key,
    open_image,
    read_edit,
    read_picture,
    read_rgb,
    resize,
    resize_labels,
    write_png,
)
from media.masks import MaskKind, find_mask_kind, read_edit_with_mask, read_labels, read_mask, write_mask
from media.videos import PUBLISHED_FPS, VideoSet, VideoWriter

__all__ = [
    "IMAGE_SUFFIXES",
    "PUBLISHED_FPS",
    "MaskKind",
    "Pixels",
    "VideoSet",
    "VideoWriter",
    "blur",
    "encode_picture",
    "explain_empty_folder",
    "find_mask_kind",
    "fresh_folder",
    "from_display",
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
    "read_picture",
    "read_rgb",
    "resize",
    "resize_labels",
    "show_in_8_bit",
    "to_8_bit",
    "to_display",
    "write_atomically",
    "write_mask",
    "write_png",
    "write_text",
]
