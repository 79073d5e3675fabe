"""Masks of the objects that somebody clicks on, by SAM 2 (Ravi et al. 2024) from the package `transformers`.

Every object is segmented in the frames with prompts and tracked from there in both directions of time. One frame is in
memory at a time, and of what the model remembers only as much as it reads, so memory does not grow with the clip."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

import media
from command_line import UserError
from media import Pixels
from preprocessing.errors import NoWeights
from preprocessing.mask_files import list_object_folders, write_object_masks
from preprocessing.mask_request import MaskRequest, Prompt

CHECKPOINT = "facebook/sam2.1-hiera-small"  # downloaded by transformers where no local folder is given
INSIDE = 127  # Value of a mask, 0 to 255, above which a pixel is inside.


def segment_clicked_objects(
    frames: list[Path], missing: list[Path], request: MaskRequest, tracker: "Sam2Tracker"
) -> Iterator[Pixels]:
    """Yield the masks (H, W) uint8 of the missing frames, in order, of all objects of the request together.

    The masks of each of several objects are also written into a folder of its own. Masks wait on disk until their
    turn. Raises UserError if a prompt lies on nothing.
    """
    prompts = request.prompts_by_object()
    with tempfile.TemporaryDirectory(prefix=".sam2_", dir=frames[0].parent.parent) as kept:
        for number, object_prompts in prompts.items():
            folder = media.make_folder(Path(kept) / str(number))
            description = f"following object {number}" if len(prompts) > 1 else "following the object"
            masks = tracker.track(frames, object_prompts)
            for t, mask in tqdm(masks, desc=description, total=len(frames), unit="frame"):
                media.write_png(folder / f"{t:06d}.png", mask)
        written = [Path(kept) / str(number) for number in prompts]
        for folder, source in zip(list_object_folders(frames[0].parent, len(prompts)), written, strict=False):
            masks_of_object = (media.read_mask(source / f"{t:06d}.png") for t in range(len(frames)))
            write_object_masks(frames, masks_of_object, folder)
        numbers = {path: t for t, path in enumerate(frames)}
        for path in missing:
            yield np.maximum.reduce([media.read_mask(source / f"{numbers[path]:06d}.png") for source in written])


class Sam2Tracker:
    """SAM 2 with its weights: follows one object at a time through a clip."""

    def __init__(self, weights: Path | None, device: torch.device):
        """weights: folder that `save_pretrained` wrote; None: downloaded once. Raises NoWeights, UserError."""
        try:
            from transformers import Sam2VideoModel, Sam2VideoProcessor
        except ImportError:
            raise NoWeights("--method sam2 needs a package: pip install 'transformers>=4.57'") from None
        if weights is not None and not (weights / "config.json").is_file():
            raise UserError(f"{weights}: no folder with config.json and weights of SAM 2; give one to --weights")
        source = str(weights or CHECKPOINT)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        try:
            model: Any = Sam2VideoModel.from_pretrained(source)
            processor: Any = Sam2VideoProcessor.from_pretrained(source)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            if weights is not None:
                raise UserError(f"{weights}: holds no weights of SAM 2 ({reason}); give another --weights") from None
            raise NoWeights(
                f"the weights of SAM 2 are not there and could not be downloaded ({reason}); "
                f"get {CHECKPOINT} elsewhere and give its folder as --weights"
            ) from None
        self.model, self.processor = model.to(device, dtype).eval(), processor
        self.device, self.dtype = device, dtype

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
        self.forget(session, t)
        logits = output.pred_masks.float().view(1, 1, *output.pred_masks.shape[-2:])
        probability = functional.interpolate(logits, size, mode="bilinear", align_corners=False)[0, 0].sigmoid()
        return media.to_8_bit(probability.cpu().numpy())

    def forget(self, session: Any, t: int) -> None:
        """Remove from a session the picture of frame t, and results that are too far from it to be read again."""
        session.processed_frames.pop(t, None)
        reach = max(self.model.config.num_maskmem, self.model.config.max_object_pointers_in_encoder)
        for outputs in session.output_dict_per_obj.values():
            tracked = outputs["non_cond_frame_outputs"]
            for other in [other for other in tracked if abs(other - t) > reach]:
                del tracked[other]
            for results in (tracked, outputs["cond_frame_outputs"]):
                if t in results:
                    results[t].pop("high_res_masks", None)  # The largest of them; it is read in this frame only.
