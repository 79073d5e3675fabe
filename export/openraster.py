"""OpenRaster files (.ora): images with layers, which Krita, GIMP and MyPaint open; ZIP files of PNGs and stack.xml."""

import io
import zipfile
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

import media
from media import Pixels

THUMBNAIL_PX = 256  # Longest side of the thumbnail in pixels, as the specification demands.


def write_openraster(path: Path, layers: dict[str, Pixels]) -> None:
    """Write RGBA layers (H, W, 4) uint8, given by name, the uppermost first; see the OpenRaster specification 0.0.5."""
    height, width = next(iter(layers.values())).shape[:2]
    merged = Image.new("RGBA", (width, height))
    entries, files = [], {}
    for number, (name, picture) in enumerate(layers.items()):
        file = f"data/layer{number}.png"
        files[file] = png_bytes(Image.fromarray(np.ascontiguousarray(picture)))
        entries.append(f'  <layer name={quoteattr(name)} src="{file}" x="0" y="0" opacity="1.0" visibility="visible"/>')
    for picture in reversed(layers.values()):
        merged.alpha_composite(Image.fromarray(np.ascontiguousarray(picture)))
    thumbnail = merged.copy()
    thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    stack = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<image version="0.0.5" w="{width}" h="{height}">',
        " <stack>",
        *entries,
        " </stack>",
        "</image>",
    ]
    with media.write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        # The specification demands that this entry is the first one and not compressed.
        archive.writestr("mimetype", "image/openraster", zipfile.ZIP_STORED)
        archive.writestr("stack.xml", "\n".join(stack) + "\n")
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr("mergedimage.png", png_bytes(merged))
        archive.writestr("Thumbnails/thumbnail.png", png_bytes(thumbnail))


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG in memory."""
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=3)
    return content.getvalue()
