"""Masks from detectron2's Mask R-CNN R50-FPN 3x, the detector of the published code, where it is installed."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from command_line import UserError
from preprocessing.mask_rcnn import ANYTHING, LEAST_SCORE, MOST_DETECTIONS
from preprocessing.mask_tracking import Detection

MODEL = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


class Detectron2:
    """Frames, each (H, W, 3) uint8 RGB, to what is found in each, the surest first; masks are hard."""

    batch = 1

    def __init__(self, class_name: str, weights: Path | None, device: object):
        try:
            from detectron2 import model_zoo
            from detectron2.config import get_cfg
            from detectron2.data import MetadataCatalog
            from detectron2.engine import DefaultPredictor
        except ImportError:
            raise UserError(
                "--method detectron2: it is not installed; follow its installation guide, or use --method maskrcnn"
            ) from None
        if weights is not None and not weights.is_file():
            raise UserError(f"{weights}: no such weights file; check --weights")
        settings = get_cfg()
        settings.merge_from_file(model_zoo.get_config_file(MODEL))
        settings.MODEL.ROI_HEADS.SCORE_THRESH_TEST = LEAST_SCORE
        settings.MODEL.WEIGHTS = str(weights) if weights else model_zoo.get_checkpoint_url(MODEL)
        settings.MODEL.DEVICE = str(device)
        self.names = list(MetadataCatalog.get(settings.DATASETS.TRAIN[0]).thing_classes)
        if class_name != ANYTHING and class_name not in self.names:
            raise UserError(
                f"--class_name {class_name!r} is unknown; use {ANYTHING!r} or one of: " + ", ".join(sorted(self.names))
            )
        self.label = None if class_name == ANYTHING else self.names.index(class_name)
        self.predictor = DefaultPredictor(settings)

    def __call__(self, images: list[NDArray[np.uint8]]) -> list[list[Detection]]:
        return [self.detections(image) for image in images]

    def detections(self, image: NDArray[np.uint8]) -> list[Detection]:
        """What is in one frame."""
        found = self.predictor(np.ascontiguousarray(image[..., ::-1]))["instances"].to("cpu")  # it expects BGR
        every = zip(found.pred_classes.tolist(), found.scores.tolist(), found.pred_masks.numpy(), strict=True)
        finds = [
            Detection(label, score, np.where(mask, 255, 0).astype(np.uint8))
            for label, score, mask in every
            if self.label in (None, label)
        ]
        return sorted(finds, key=lambda find: -find.score)[:MOST_DETECTIONS]

    def name_of(self, label: int) -> str:
        """The name of a class."""
        return self.names[label]
