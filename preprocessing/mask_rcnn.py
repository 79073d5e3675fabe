"""Masks from torchvision's Mask R-CNN (He et al. 2017), trained on the 80 everyday things of COCO."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights, maskrcnn_resnet50_fpn_v2

from command_line import UserError
from preprocessing.mask_tracking import Detection
from preprocessing.weights import load_weights

LEAST_SCORE = 0.5  # as published
MOST_DETECTIONS = 6  # of a frame; each takes the memory of a mask
ANYTHING = "anything"
WEIGHTS = MaskRCNN_ResNet50_FPN_V2_Weights.DEFAULT
BATCH = {"cuda": 4, "cpu": 1}


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
    """Frames, each (H, W, 3) uint8, to what is found in each: instances of one class, or of any, the surest first."""

    def __init__(self, class_name: str, weights: Path | None, device: torch.device):
        check_class_name(class_name)
        self.label = None if class_name == ANYTHING else WEIGHTS.meta["categories"].index(class_name)
        model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
        load_weights(model, weights, WEIGHTS.url)
        self.model, self.device = model.to(device).eval(), device
        self.batch = BATCH.get(device.type, 1)

    @torch.inference_mode()
    def __call__(self, images: list[NDArray[np.uint8]]) -> list[list[Detection]]:
        pictures = [torch.from_numpy(image).to(self.device).permute(2, 0, 1).float() / 255 for image in images]
        return [to_detections(found, self.label) for found in self.model(pictures)]

    @staticmethod
    def name_of(label: int) -> str:
        """The name of a class."""
        return WEIGHTS.meta["categories"][label]


def to_detections(found: dict[str, torch.Tensor], label: int | None) -> list[Detection]:
    """A detector's output for one frame as finds, soft masks; those sure enough and of the label, or of any."""
    wanted = found["scores"] >= LEAST_SCORE
    if label is not None:
        wanted &= found["labels"] == label
    order = found["scores"].where(wanted, -1).argsort(descending=True)[: min(int(wanted.sum()), MOST_DETECTIONS)]
    masks = (found["masks"][order, 0] * 255).round().byte().cpu().numpy()
    labels, scores = found["labels"][order].tolist(), found["scores"][order].tolist()
    return [Detection(*each) for each in zip(labels, scores, masks, strict=True)]
