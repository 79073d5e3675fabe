"""Masks from torchvision's Mask R-CNN (He et al. 2017), trained on the 80 everyday things of COCO."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights, maskrcnn_resnet50_fpn_v2

from command_line import UserError
from preprocessing.weights import load_weights

LEAST_SCORE = 0.5  # as published
ANYTHING = "anything"
WEIGHTS = MaskRCNN_ResNet50_FPN_V2_Weights.DEFAULT


def class_names() -> list[str]:
    """Names that can be asked for, in alphabetic order."""
    return sorted(name for name in WEIGHTS.meta["categories"] if name not in ("__background__", "N/A"))


def check_class_name(name: str) -> None:
    """Raise UserError, listing the names there are, for one that Mask R-CNN does not know."""
    if name != ANYTHING and name not in class_names():
        raise UserError(
            f"--class_name {name!r} is unknown to Mask R-CNN; use {ANYTHING!r} or one of: " + ", ".join(class_names())
        )


class MaskRcnn:
    """image (H, W, 3) uint8 -> mask (H, W) uint8 of the best-scored instance of a class, or None if there is none."""

    def __init__(self, class_name: str, weights: Path | None, device: torch.device):
        categories = WEIGHTS.meta["categories"]
        check_class_name(class_name)
        self.label = None if class_name == ANYTHING else categories.index(class_name)
        model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
        load_weights(model, weights, WEIGHTS.url)
        self.model, self.device = model.to(device).eval(), device

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        picture = torch.from_numpy(image).to(self.device).permute(2, 0, 1).float() / 255
        return best_mask(self.model([picture])[0], self.label)


def best_mask(found: dict[str, torch.Tensor], label: int | None) -> NDArray[np.uint8] | None:
    """The best-scored instance among a detector's output, as 0 and 255; of one label, or of any where it is None."""
    wanted = found["scores"] >= LEAST_SCORE
    if label is not None:
        wanted &= found["labels"] == label
    if not wanted.any():
        return None
    best = found["scores"].where(wanted, -1).argmax()
    return ((found["masks"][best, 0] > 0.5).cpu().numpy() * np.uint8(255)).astype(np.uint8)
