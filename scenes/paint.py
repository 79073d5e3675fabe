"""The edits of the demo: a star on the cat's forehead, painted over a frame, and stripes over the background atlas."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from scenes.scene import Scene

FRAME_INDEX = 5  # frame over which the star is painted
ENLARGEMENT = 4  # the star is drawn so many times larger and then shrunk, for smooth edges
FOREHEAD = (5, -62)  # position on the cat's photograph, pixels from its center
GOLD, BROWN, BLUE = (255, 205, 40, 255), (120, 60, 0, 255), (30, 90, 220, 120)  # RGBA; blue is half-transparent


def star(center: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """Return the ten corners (x, y) of a five-pointed star."""
    corners = []
    for corner in range(10):
        angle, distance = math.pi * corner / 5 - math.pi / 2, radius * (1 if corner % 2 == 0 else 0.42)
        corners.append((center[0] + distance * math.cos(angle), center[1] + distance * math.sin(angle)))
    return corners


def frame_paint(scene: Scene, index: int = FRAME_INDEX) -> Image.Image:
    """Return an RGBA edit of the frame `index`: a star on the forehead, transparent elsewhere."""
    face = scene.layers[0]
    x, y = face.to_frame(np.add(face.pivot, FOREHEAD), index)
    image = Image.new("RGBA", (scene.width * ENLARGEMENT, scene.height * ENLARGEMENT))
    pen = ImageDraw.Draw(image)
    pen.polygon(
        star((x * ENLARGEMENT, y * ENLARGEMENT), 0.1 * scene.width * ENLARGEMENT), GOLD, BROWN, width=2 * ENLARGEMENT
    )
    return image.resize((scene.width, scene.height), Image.Resampling.LANCZOS)


def atlas_paint(size: int = 1000, stripes: int = 9) -> Image.Image:
    """Return an RGBA edit of a square atlas: half-transparent diagonal stripes. size: width and height in pixels."""
    image = Image.new("RGBA", (size, size))
    pen, width = ImageDraw.Draw(image), size / stripes
    for stripe in range(-stripes, stripes):
        left = stripe * width
        pen.polygon([(left, 0), (left + width / 2, 0), (left + width / 2 + size, size), (left + size, size)], BLUE)
    return image


def write_paint(scene: Scene, folder: Path) -> Path:
    """Write frame_edit.png and background_edit.png, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    frame_paint(scene).save(folder / "frame_edit.png")
    atlas_paint().save(folder / "background_edit.png")
    return folder
