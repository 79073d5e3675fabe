"""Masks from detectron2's Mask R-CNN R50-FPN 3x, which is the detector of the published code.

The package detectron2 is optional and is imported only when this method is chosen.
"""

from pathlib import Path

import numpy as np

from command_line import UserError
from media import Pixels
from preprocessing.mask_rcnn import ANYTHING, MAX_DETECTIONS, MIN_SCORE, check_class_name
from preprocessing.mask_tracking import Detection

MODEL = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


class Detectron2:
    """Detect objects of one class, or of any class, with detectron2. Its masks are hard: 0 or 255."""

    batch_size = 1  # detectron2's predictor takes one frame at a time

    def __init__(self, class_name: str, weights: Path | None, device: object):
        """Load the network. Raise UserError if detectron2, the weights file or the class does not exist."""
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
            raise UserError(f"{weights}: no such weights file; check --weights, in unwrap_video.py --mask_weights")
        settings = get_cfg()
        settings.merge_from_file(model_zoo.get_config_file(MODEL))
        settings.MODEL.ROI_HEADS.SCORE_THRESH_TEST = MIN_SCORE
        settings.MODEL.WEIGHTS = str(weights) if weights else model_zoo.get_checkpoint_url(MODEL)
        settings.MODEL.DEVICE = str(device)
        self.names: list[str] = list(MetadataCatalog.get(settings.DATASETS.TRAIN[0]).thing_classes)
        check_class_name(class_name, self.names)
        self.label = None if class_name == ANYTHING else self.names.index(class_name)
        self.predictor = DefaultPredictor(settings)

    def __call__(self, images: list[Pixels]) -> list[list[Detection]]:
        """Return the detections of each of the frames (H, W, 3) uint8, the surest first."""
        return [self.detect(image) for image in images]

    def detect(self, image: Pixels) -> list[Detection]:
        """Return the detections of one frame (H, W, 3) uint8, the surest first."""
        instances = self.predictor(np.ascontiguousarray(image[..., ::-1]))["instances"].to("cpu")  # it expects BGR
        labels, scores = instances.pred_classes.tolist(), instances.scores.tolist()
        detections = [
            Detection(label, score, np.where(mask, 255, 0).astype(np.uint8))
            for label, score, mask in zip(labels, scores, instances.pred_masks.numpy(), strict=True)
            if self.label in (None, label)
        ]
        return sorted(detections, key=lambda detection: -detection.score)[:MAX_DETECTIONS]

    def label_name(self, label: int) -> str:
        """Return the name of a class."""
        return self.names[label]
