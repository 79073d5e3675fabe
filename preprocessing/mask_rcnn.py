"""Masks from torchvision's Mask R-CNN (He et al. 2017), trained on the 80 classes of COCO."""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch

from command_line import UserError
from media import Pixels
from preprocessing.mask_tracking import Detection
from preprocessing.weights import load_network, make_torchvision_network

MIN_SCORE = 0.5  # Score below which a detection is ignored, as published.
MAX_DETECTIONS = 6  # Number of detections kept per frame, because each needs the memory of a mask.
ANYTHING = "anything"  # The class name that accepts all classes.
BATCH_SIZES = {"cuda": 4, "cpu": 1}  # Number of frames per call, by the type of the device.
# The address and the classes are written down here, although torchvision knows them, because torchvision takes a second
# and 160 MB, and is needed by none of those who have no weights.
WEIGHTS_URL = "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
UNUSED = "-"  # A label that COCO does not use.
COCO_LABELS = (  # The names of the labels of COCO, from label 0, the background.
    "-,person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,-,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,-,backpack,umbrella,-,-,handbag,tie,"
    "suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,"
    "bottle,-,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,"
    "cake,chair,couch,potted plant,bed,-,dining table,-,-,toilet,-,tv,laptop,mouse,remote,keyboard,cell phone,"
    "microwave,oven,toaster,sink,refrigerator,-,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
CLASSES = COCO_LABELS.split(",")


def class_names() -> list[str]:
    """Return the names of the classes that can be requested, in alphabetic order."""
    return sorted(name for name in CLASSES if name != UNUSED)


def check_class_name(name: str, known: Sequence[str]) -> None:
    """Raise UserError for a class that is not known. It names the most similar ones first, and then all."""
    if name == ANYTHING or name in known:
        return
    similar = get_close_matches(name, known)
    guess = f"did you mean {' or '.join(map(repr, similar))}? Otherwise " if similar else ""
    raise UserError(
        f"--class_name {name!r} is unknown to Mask R-CNN; {guess}use {ANYTHING!r} or one of: {', '.join(sorted(known))}"
    )


class MaskRcnn:
    """Detect objects of one class, or of any class, with torchvision's Mask R-CNN. Its masks are soft."""

    def __init__(self, class_name: str, weights: Path | None, device: torch.device):
        """Load the network. Raise UserError for an unknown class or unusable weights, NoWeights without weights."""
        check_class_name(class_name, class_names())
        self.label = None if class_name == ANYTHING else CLASSES.index(class_name)
        make_network = partial(make_torchvision_network, "maskrcnn_resnet50_fpn_v2", weights_backbone=None)
        model = load_network(make_network, weights, WEIGHTS_URL, "--mask_weights")
        self.model, self.device = model.to(device).eval(), device
        self.batch_size = BATCH_SIZES.get(device.type, 1)

    @torch.inference_mode()
    def __call__(self, images: list[Pixels]) -> list[list[Detection]]:
        """Return the detections of each of the frames (H, W, 3) uint8, the surest first."""
        pictures = [torch.from_numpy(image).to(self.device).permute(2, 0, 1).float() / 255 for image in images]
        return [to_detections(output, self.label) for output in self.model(pictures)]

    @staticmethod
    def label_name(label: int) -> str:
        """Return the name of a class."""
        return CLASSES[label]


def to_detections(output: dict[str, torch.Tensor], label: int | None) -> list[Detection]:
    """Return the network's output for one frame as detections with soft masks, the surest first.

    output: `scores` (N,), `labels` (N,) and `masks` (N, 1, H, W) in [0, 1]. label: None accepts all classes.
    """
    is_accepted = output["scores"] >= MIN_SCORE
    if label is not None:
        is_accepted &= output["labels"] == label
    count = min(int(is_accepted.sum()), MAX_DETECTIONS)
    order = output["scores"].where(is_accepted, -1).argsort(descending=True)[:count]
    masks = (output["masks"][order, 0] * 255).round().byte().cpu().numpy()
    labels, scores = output["labels"][order].tolist(), output["scores"][order].tolist()
    return [Detection(*values) for values in zip(labels, scores, masks, strict=True)]
