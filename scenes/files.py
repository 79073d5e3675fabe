"""Write a scene as files, in the layout that the scripts read."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from implicit_neural_networks import visibility
from media import make_folder, to_8_bit, write_png, write_text
from parallel.side_by_side import stream_side_by_side
from scenes.rough import rough_mask
from scenes.scene import Scene


def write_scene(scene: Scene, data: Path, fps: float = 12.0, seed: int = 0, missing: float = 0.0) -> Path:
    """Write the frames, the rough masks and the ground truth of a scene, and return the frames folder.

    NAME_gt holds the true masks. NAME_gt_flow holds the true flow, with 1 in its third channel where the target is
    visible. NAME_maskrcnn holds rough masks of all objects together; a scene with several objects also gets
    NAME_maskrcnn_1, NAME_maskrcnn_2, ... for each of them. missing: probability that a rough mask is empty.
    """
    folder = data / scene.name
    true_masks, true_flow, rough_masks = (
        make_folder(data / f"{scene.name}{s}") for s in ("_gt", "_gt_flow", "_maskrcnn")
    )
    names = [f"{t:05d}.png" for t in range(scene.frames)]
    make_folder(folder)

    def write_frame(t: int) -> None:
        """Write everything that belongs to frame t."""
        frame, name = scene.frame(t), names[t]
        opacity = 1 - np.prod(1 - frame.alpha, axis=0)
        write_png(folder / name, frame.rgb)
        write_png(true_masks / name, to_8_bit(opacity >= 0.5))
        write_png(rough_masks / name, rough_mask(opacity, seed + t, missing))
        if scene.objects > 1:
            visibilities = visibility(torch.from_numpy(frame.alpha))[:-1].numpy()
            for number, object_visibility in enumerate(visibilities, 1):
                mask = rough_mask(object_visibility, seed + t + number * scene.frames, missing)
                write_png(make_folder(data / f"{scene.name}_maskrcnn_{number}") / name, mask)
        for other in (t - 1, t + 1):
            if 0 <= other < scene.frames:
                flow, is_visible = scene.flow(t, other)
                flow_and_visibility = np.dstack((flow, is_visible)).astype(np.float32)
                np.save(true_flow / f"{name}_{names[other]}.npy", flow_and_visibility)

    with closing(stream_side_by_side(write_frame, range(scene.frames))) as written:
        for _ in tqdm(written, desc=f"drawing {scene.name}", unit="frame", total=scene.frames):
            pass
    write_text(folder.with_name(f"{scene.name}.json"), json.dumps({"fps": fps}) + "\n")
    return folder
