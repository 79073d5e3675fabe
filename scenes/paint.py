"""Paint for the demo: a star for the cat's forehead, drawn over one frame, and stripes for the background atlas."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from scenes.scene import Scene

FRAME_INDEX = 5
FINER = 4  # drawn larger and shrunk, for smooth edges
GOLD, EDGE, STRIPE = (255, 205, 40, 255), (120, 60, 0, 255), (30, 90, 220, 120)


def star(center: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """Corners of a five-pointed star."""
    corners = []
    for corner in range(10):
        angle, reach = math.pi * corner / 5 - math.pi / 2, radius * (1 if corner % 2 == 0 else 0.42)
        corners.append((center[0] + reach * math.cos(angle), center[1] + reach * math.sin(angle)))
    return corners


def frame_paint(scene: Scene, index: int = FRAME_INDEX) -> Image.Image:
    """RGBA over frame `index`: a star between the eyes, transparent elsewhere."""
    face = scene.layers[0]
    x, y = face.to_frame(np.add(face.pivot, (5, -62)), index)
    image = Image.new("RGBA", (scene.width * FINER, scene.height * FINER))
    pen = ImageDraw.Draw(image)
    pen.polygon(star((x * FINER, y * FINER), 0.1 * scene.width * FINER), GOLD, EDGE, width=2 * FINER)
    return image.resize((scene.width, scene.height), Image.Resampling.LANCZOS)


def atlas_paint(size: int = 1000, stripes: int = 9) -> Image.Image:
    """RGBA over an atlas: half-transparent diagonal stripes."""
    image = Image.new("RGBA", (size, size))
    pen, width = ImageDraw.Draw(image), size / stripes
    for stripe in range(-stripes, stripes):
        left = stripe * width
        pen.polygon([(left, 0), (left + width / 2, 0), (left + width / 2 + size, size), (left + size, size)], STRIPE)
    return image


def write_paint(scene: Scene, folder: Path) -> Path:
    """Write frame_edit.png and background_edit.png."""
    folder.mkdir(parents=True, exist_ok=True)
    frame_paint(scene).save(folder / "frame_edit.png")
    atlas_paint().save(folder / "background_edit.png")
    return folder
