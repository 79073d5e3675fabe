"""Masks of the objects that somebody clicks on, by SAM 2 (Ravi et al. 2024) from the package `transformers`.

Every object is segmented in the frames with prompts and tracked from there in both directions of time. One frame is in
memory at a time, and of what the model remembers only as much as it reads, so memory does not grow with the clip."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import media
from command_line import UserError
from media import Pixels
from preprocessing.mask_files import read_kept_masks
from preprocessing.mask_request import MaskRequest, Prompt
from preprocessing.pretrained import (
    INSIDE,
    PretrainedModel,
    forget_far_frames,
    inference_dtype,
    load_pretrained,
    logits_to_mask,
)

SAM2 = PretrainedModel(
    "SAM 2", "sam2_video", "Sam2VideoModel", "Sam2VideoProcessor", "4.57", "facebook/sam2.1-hiera-small"
)


def segment_clicked_objects(
    frames: list[Path], missing: list[Path], request: MaskRequest, tracker: "Sam2Tracker"
) -> Iterator[Pixels]:
    """Yield the masks (H, W) uint8 of the missing frames, in order, of all objects of the request together.

    The masks of each of several objects are also written into a folder of its own. Masks wait on disk until their
    turn. Raises UserError if a prompt lies on nothing.
    """
    prompts = request.prompts_by_object()
    with tempfile.TemporaryDirectory(prefix=".masks_", dir=frames[0].parent.parent) as kept:
        for number, object_prompts in prompts.items():
            folder = media.make_folder(Path(kept) / str(number))
            description = f"following object {number}" if len(prompts) > 1 else "following the object"
            masks = tracker.track(frames, object_prompts)
            for t, mask in tqdm(masks, desc=description, total=len(frames), unit="frame"):
                media.write_png(folder / f"{frames[t].stem}.png", mask)
        yield from read_kept_masks(frames, missing, [Path(kept) / str(number) for number in prompts])


class Sam2Tracker:
    """SAM 2 with its weights: follows one object at a time through a clip."""

    def __init__(self, weights: Path | None, device: torch.device):
        """weights: folder that `save_pretrained` wrote; None: downloaded once. Raises NoWeights, UserError."""
        self.model, self.processor = load_pretrained(SAM2, weights, device)
        self.device, self.dtype = device, inference_dtype(device)

    @torch.inference_mode()
    def track(self, frames: list[Path], prompts: list[Prompt]) -> Iterator[tuple[int, Pixels]]:
        """Yield (frame number, mask (H, W) uint8, soft) of every frame, forward from the first prompt, then backward.

        Raises UserError if the object is not visible where somebody clicked.
        """
        session = self.processor.init_video_session(inference_device=self.device, dtype=self.dtype)
        prompted = sorted({prompt.t for prompt in prompts})
        for t in prompted:
            here = [prompt for prompt in prompts if prompt.t == t]
            mask = self.segment(session, frames[t], t, here)
            if not (mask > INSIDE).any() and any(prompt.is_positive for prompt in here):
                raise UserError(f"{here[0]}: SAM 2 sees no object there; click on the middle of the object")
        for t in range(prompted[0], len(frames)):
            yield t, self.segment(session, frames[t], t)
        for t in range(prompted[0] - 1, -1, -1):
            yield t, self.segment(session, frames[t], t, reverse=True)

    def segment(
        self, session: Any, path: Path, t: int, prompts: list[Prompt] | None = None, reverse: bool = False
    ) -> Pixels:
        """Return the mask (H, W) uint8 of one frame; what the session no longer needs is removed from it."""
        picture = media.read_rgb(path)
        size = picture.shape[:2]
        if prompts:
            points = [corner for prompt in prompts if not prompt.is_box for corner in prompt.corners]
            labels = [int(prompt.is_positive) for prompt in prompts if not prompt.is_box]
            boxes = [[*prompt.corners[0], *prompt.corners[1]] for prompt in prompts if prompt.is_box]
            self.processor.add_inputs_to_inference_session(
                session,
                frame_idx=t,
                obj_ids=1,
                input_points=[[[list(point) for point in points]]] if points else None,
                input_labels=[[labels]] if points else None,
                input_boxes=[boxes[:1]] if boxes else None,
                original_size=size,
            )
        pixels = self.processor(images=picture, return_tensors="pt").pixel_values.to(self.device, self.dtype)
        output = self.model(inference_session=session, frame_idx=t, frame=pixels, reverse=reverse)
        forget_far_frames(session, t, self.model.config)
        return logits_to_mask(output.pred_masks.reshape(1, *output.pred_masks.shape[-2:]), size)
