"""RAFT optical flow (Teed and Deng 2020): torchvision's network, or the published code as a submodule."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

from command_line import UserError
from preprocessing.weights import load_weights, saved_weights, unwrapped

THIRDPARTY = Path(__file__).resolve().parents[1] / "thirdparty" / "RAFT"
MULTIPLE_PX, SMALLEST_PX = 8, 128  # RAFT halves its input three times and its correlations three times more
UPDATES = 20  # refinements per pair, as published


class RaftFlow:
    """(image, following image), (H, W, 3) uint8 -> flow (H, W, 2) in pixels.

    network: two pictures (1, 3, h, w) in 0..255, of sides that RAFT accepts -> flow (1, 2, h, w). Pictures are padded
    to such sides, and the padding is cropped off the flow.
    """

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor], device: torch.device):
        self.network, self.device = network, device

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8], following: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = image.shape[:2]
        padded = [max(SMALLEST_PX, -(-side // MULTIPLE_PX) * MULTIPLE_PX) for side in (height, width)]
        margins = (0, padded[1] - width, 0, padded[0] - height)
        both = [torch.from_numpy(each).to(self.device).permute(2, 0, 1)[None].float() for each in (image, following)]
        flow = self.network(*(functional.pad(each, margins, mode="replicate") for each in both))
        return flow[0, :, :height, :width].permute(1, 2, 0).float().cpu().numpy()


def torchvision_raft(weights: Path | None, device: torch.device) -> RaftFlow:
    """torchvision's raft_large, with weights from a file or from its own download. Raises UserError."""
    model = raft_large(weights=None)
    load_weights(model, weights, Raft_Large_Weights.DEFAULT.url)
    model = model.to(device).eval()
    return RaftFlow(lambda a, b: model(a / 127.5 - 1, b / 127.5 - 1, num_flow_updates=UPDATES)[-1], device)


def thirdparty_raft(weights: Path | None, device: torch.device) -> RaftFlow:
    """The published code with its raft-things.pth. Raises UserError that tells how to get both."""
    weights = weights or THIRDPARTY / "models" / "raft-things.pth"
    if not (THIRDPARTY / "core" / "raft.py").is_file():
        raise UserError(f"{THIRDPARTY} is empty; run git submodule update --init thirdparty/RAFT, or use --method raft")
    if not weights.is_file():
        raise UserError(
            f"{weights}: no such file; run download_models.sh in thirdparty/RAFT, which puts it there, "
            "or use --method raft"
        )
    sys.path.insert(0, str(THIRDPARTY / "core"))
    from raft import RAFT

    options = argparse.Namespace(small=False, mixed_precision=False, alternate_corr=False, dropout=0)
    model: nn.Module = RAFT(options)
    model.load_state_dict(unwrapped(saved_weights(weights)))
    model = model.to(device).eval()
    return RaftFlow(lambda a, b: model(a, b, iters=UPDATES, test_mode=True)[1], device)
