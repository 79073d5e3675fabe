"""Masks of the objects that a text names, by SAM 3 (Carion et al. 2025) from the package `transformers`.

SAM 3 looks for everything that the text names in every frame and follows what it finds. One frame is in memory at a
time; masks wait on disk until all frames are seen. Then the object with the highest score times the number of frames
that show it is taken."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import media
from command_line import UserError
from media import Pixels
from preprocessing.errors import NothingFound
from preprocessing.mask_files import read_kept_masks
from preprocessing.mask_request import MaskRequest
from preprocessing.pretrained import (
    INSIDE,
    PretrainedModel,
    forget_far_frames,
    inference_dtype,
    load_pretrained,
    logits_to_mask,
)

SAM3 = PretrainedModel("SAM 3", "sam3_video", "Sam3VideoModel", "Sam3VideoProcessor", "5.0", "facebook/sam3")


def segment_named_objects(
    frames: list[Path], missing: list[Path], request: MaskRequest, finder: "Sam3Finder"
) -> Iterator[Pixels]:
    """Yield the masks (H, W) uint8 of the missing frames, in order, of the objects that the request's text names.

    See `choose_objects` for which of them are taken. Raises NothingFound if there are too few, UserError if there is no
    such --instance.
    """
    total_scores: Counter[int] = Counter()
    with tempfile.TemporaryDirectory(prefix=".masks_", dir=frames[0].parent.parent) as kept:
        found = tqdm(finder.find(frames, request.text or ""), desc="looking", total=len(frames), unit="frame")
        for path, objects in zip(frames, found, strict=True):
            for number, (score, mask) in objects.items():
                media.write_png(media.make_folder(Path(kept) / str(number)) / f"{path.stem}.png", mask)
                total_scores[number] += score
        chosen = choose_objects(total_scores, request)
        sources = [Path(kept) / str(number) for number in chosen]
        for source in sources:
            write_empty_masks(frames, source)
        yield from read_kept_masks(frames, missing, sources)


def choose_objects(total_scores: Counter[int], request: MaskRequest) -> list[int]:
    """Return the numbers of the objects to take: those with the highest total score first, from --instance on.

    total_scores: the score of each object, added once for every frame that shows it, by number.

    Raises NothingFound if fewer objects than requested were found, UserError if there is no such --instance.
    """
    order = [number for number, _ in total_scores.most_common()]
    for place, number in enumerate(order, 1):
        print(f"object {place}: total score {total_scores[number]:.1f}")
    start = (request.instance or 1) - 1
    if order and request.instance is not None and request.instance > len(order):
        raise UserError(f"--instance {request.instance}: only {len(order)} objects were found; see the list above")
    chosen = order[start : start + request.objects]
    if len(chosen) < request.objects:
        raise NothingFound(
            f"--text {request.text!r}: {len(order)} objects were found, {start + request.objects} are needed; name it "
            "in other words, or click on it with --point"
        )
    return chosen


def write_empty_masks(frames: list[Path], folder: Path) -> None:
    """Write an empty mask into a folder for every frame that has none there."""
    width, height = media.image_size(frames[0])
    for path in frames:
        if not (file := folder / f"{path.stem}.png").exists():
            media.write_png(file, np.zeros((height, width), np.uint8))


class Sam3Finder:
    """SAM 3 with its weights: finds and follows everything that a text names."""

    def __init__(self, weights: Path | None, device: torch.device):
        """weights: folder that `save_pretrained` wrote; None: downloaded once. Raises NoWeights, UserError."""
        self.model, self.processor = load_pretrained(SAM3, weights, device)
        self.device, self.dtype = device, inference_dtype(device)

    @torch.inference_mode()
    def find(self, frames: list[Path], text: str) -> Iterator[dict[int, tuple[float, Pixels]]]:
        """Yield for every frame the objects in view: score from 0 to 1 and mask (H, W) uint8, soft, by number."""
        session = self.processor.init_video_session(inference_device=self.device, dtype=self.dtype)
        self.processor.add_text_prompt(session, text)
        for t, path in enumerate(frames):
            picture = media.read_rgb(path)
            pixels = self.processor(images=picture, return_tensors="pt").pixel_values.to(self.device, self.dtype)
            output = self.model(inference_session=session, frame_idx=t, frame=pixels)
            forget_far_frames(session, t, self.model.config.tracker_config)
            self.forget_old_conditions(session, t)
            hidden = set(output.suppressed_obj_ids or ()) | set(output.removed_obj_ids or ())
            yield {
                number: (float(output.obj_id_to_score[number]), mask)
                for number, logits in output.obj_id_to_mask.items()
                if number not in hidden and ((mask := logits_to_mask(logits, picture.shape[:2])) > INSIDE).any()
            }

    def forget_old_conditions(self, session: Any, t: int) -> None:
        """Remove the oldest of the frames by which a session knows its objects; SAM 3 adds one every few frames.

        It reads only the nearest ones, and as it goes forward in time, the oldest are never among them again.
        """
        most = self.model.config.tracker_config.max_cond_frame_num
        for number, outputs in session.output_dict_per_obj.items():
            conditions = outputs["cond_frame_outputs"]
            for old in sorted(conditions)[:-most]:
                del conditions[old]
            inputs = session.mask_inputs_per_obj.get(number, {})
            for old in [old for old in inputs if old < t]:
                del inputs[old]
