"""Load models of the package `transformers` with their weights, from a local folder or by its own download."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import media
from command_line import UserError
from media import Pixels
from preprocessing.errors import NoWeights

INSIDE = 127  # Value of a mask, 0 to 255, above which a pixel is inside.


@dataclass(frozen=True)
class PretrainedModel:
    """Where a model of the package `transformers` is found."""

    title: str  # its name in messages
    model_type: str  # its name in config.json
    model_class: str
    processor_class: str
    version: str  # the oldest release of the package that has the classes
    checkpoint: str  # what is downloaded where no local folder is given


def load_pretrained(wanted: PretrainedModel, weights: Path | None, device: torch.device) -> tuple[Any, Any]:
    """Return a model, ready for use, and its processor. weights: a folder that `save_pretrained` wrote, or None.

    Raises NoWeights if the package or the download is missing, UserError if the folder does not hold such a model.
    """
    try:
        import transformers
        from safetensors import SafetensorError

        model_class = getattr(transformers, wanted.model_class)
        processor_class = getattr(transformers, wanted.processor_class)
    except (ImportError, AttributeError):
        raise NoWeights(f"{wanted.title} needs a package: pip install 'transformers>={wanted.version}'") from None
    if weights is not None:
        check_model_type(wanted, weights)
    source = str(weights or wanted.checkpoint)
    try:
        model, processor = model_class.from_pretrained(source), processor_class.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, TypeError, ImportError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if weights is not None:
            raise UserError(f"{weights}: holds no weights of {wanted.title} ({reason}); give another folder") from None
        raise NoWeights(
            f"the weights of {wanted.title} are not there and could not be downloaded ({reason}); get "
            f"{wanted.checkpoint} elsewhere and give its folder (--weights, in unwrap_video.py --mask_weights)"
        ) from None
    return model.to(device, inference_dtype(device)).eval(), processor


def check_model_type(wanted: PretrainedModel, weights: Path) -> None:
    """Raise UserError if a folder holds another model, whose missing weights would be random numbers."""
    try:
        found = json.loads((weights / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"{weights}: no folder with config.json and weights of {wanted.title}; give one to --weights"
        ) from None
    if found != wanted.model_type:
        raise UserError(f"{weights}: holds a model of type {found!r}, {wanted.title} has type {wanted.model_type!r}")


def inference_dtype(device: torch.device) -> torch.dtype:
    """Return the type of numbers in which a model runs on a device."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def forget_far_frames(session: Any, t: int, tracker_config: Any) -> None:
    """Remove from a session the picture of frame t, and results too far from it to be read again.

    Frames with prompts are kept. tracker_config: the config that says how far the model looks back.
    """
    session.processed_frames.pop(t, None)
    reach = max(tracker_config.num_maskmem, tracker_config.max_object_pointers_in_encoder)
    for outputs in session.output_dict_per_obj.values():
        tracked = outputs["non_cond_frame_outputs"]
        for other in [other for other in tracked if abs(other - t) > reach]:
            del tracked[other]
        for results in (tracked, outputs["cond_frame_outputs"]):
            if t in results:
                results[t].pop("high_res_masks", None)  # The largest of them; it is read in this frame only.


def logits_to_mask(logits: torch.Tensor, size: tuple[int, ...]) -> Pixels:
    """Return the logits (1, h, w) of a small mask as a soft mask (H, W) uint8 of the given size."""
    full = functional.interpolate(logits.float()[None], size, mode="bilinear", align_corners=False)
    return media.to_8_bit(full[0, 0].sigmoid().cpu().numpy())
