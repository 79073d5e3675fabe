"""A scene as files, in the layout that the scripts read."""

import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from implicit_neural_networks import visibility
from media import make_folder, to_8_bit, write_png, write_text
from scenes.rough import rough_mask
from scenes.scene import Scene


def write_scene(scene: Scene, data: Path, fps: float = 12.0, seed: int = 0, missing: float = 0.0) -> Path:
    """Write frames, rough masks, and the truth: NAME_gt masks, NAME_gt_flow with 1 in its third channel where visible.

    Returns the frames' folder. Several objects count as one in the masks, and each also has masks of its own,
    NAME_maskrcnn_1, _2, ...; `missing` is the share of frames without a mask.
    """
    folder = data / scene.name
    folders = {suffix: data / f"{scene.name}{suffix}" for suffix in ("", "_gt", "_gt_flow", "_maskrcnn")}
    for path in folders.values():
        path.mkdir(parents=True, exist_ok=True)
    names = [f"{t:05d}.png" for t in range(scene.frames)]
    for t, name in enumerate(tqdm(names, desc=f"drawing {scene.name}", unit="frame")):
        frame = scene.frame(t)
        opacity = 1 - np.prod(1 - frame.alpha, axis=0)
        write_png(folder / name, frame.rgb)
        write_png(folders["_gt"] / name, to_8_bit(opacity >= 0.5))
        write_png(folders["_maskrcnn"] / name, rough_mask(opacity, seed + t, missing))
        shown = visibility(torch.from_numpy(frame.alpha))[:-1].numpy()
        for number, alpha in enumerate(shown if scene.objects > 1 else (), 1):
            target = make_folder(data / f"{scene.name}_maskrcnn_{number}")
            write_png(target / name, rough_mask(alpha, seed + t + number * scene.frames, missing))
        for other in (t - 1, t + 1):
            if 0 <= other < scene.frames:
                flow, visible = scene.flow(t, other)
                stacked = np.dstack((flow, visible)).astype(np.float32)
                np.save(folders["_gt_flow"] / f"{name}_{names[other]}.npy", stacked)
    write_text(folder.with_name(f"{scene.name}.json"), json.dumps({"fps": fps}) + "\n")
    return folder
