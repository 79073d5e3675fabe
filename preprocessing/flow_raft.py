"""RAFT optical flow (Teed and Deng 2020): torchvision's network, or the published code as a git submodule."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from command_line import UserError
from media import Pixels
from preprocessing.weights import load_network, make_torchvision_network, read_weights, strip_prefix

Floats = NDArray[np.floating]

THIRDPARTY = Path(__file__).resolve().parents[1] / "thirdparty" / "RAFT"
SIDE_MULTIPLE_PX = 8  # RAFT halves its input three times, so each side must be a multiple of 8 pixels.
MIN_SIDE_PX = 128  # RAFT halves its correlations three times more, so each side must have at least 128 pixels.
WEIGHTS_URL = "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth"  # those of torchvision
UPDATES = 20  # Number of refinement steps per pair, as published.


class RaftFlow:
    """Compute the flow between two frames, in both directions, with a RAFT network.

    network: takes pictures (N, 3, h, w) in 0..255 and as many other pictures, with sides that RAFT accepts; returns the
    flow (N, 2, h, w) from each picture to its other one. Frames are padded to such sides, and the padding is cropped
    off the flow. Both directions are one batch, in half precision on a GPU.
    """

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor], device: torch.device):
        """Store the network, which is on the device already."""
        self.network, self.device = network, device

    @torch.inference_mode()
    def __call__(self, image: Pixels, following: Pixels) -> tuple[Floats, Floats]:
        """Return the forward and the backward flow of two frames (H, W, 3) uint8, each (H, W, 2) in pixels."""
        height, width = image.shape[:2]
        padded = [max(MIN_SIDE_PX, -(-side // SIDE_MULTIPLE_PX) * SIDE_MULTIPLE_PX) for side in (height, width)]
        margins = (0, padded[1] - width, 0, padded[0] - height)
        both = torch.from_numpy(np.stack((image, following))).to(self.device).permute(0, 3, 1, 2).float()
        both = functional.pad(both, margins, mode="replicate")
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            flow = self.network(both, both.flip(0))
        forward, backward = flow[..., :height, :width].permute(0, 2, 3, 1).float().cpu().numpy()
        return forward, backward


def load_torchvision_raft(weights: Path | None, device: torch.device) -> RaftFlow:
    """Return torchvision's raft_large, with weights from a file or from torchvision's download.

    Raise UserError if the file is not usable, and NoWeights if the download fails.
    """
    model = load_network(partial(make_torchvision_network, "raft_large"), weights, WEIGHTS_URL, "--flow_weights")
    model = model.to(device).eval()
    return RaftFlow(lambda a, b: model(a / 127.5 - 1, b / 127.5 - 1, num_flow_updates=UPDATES)[-1], device)


def load_thirdparty_raft(weights: Path | None, device: torch.device) -> RaftFlow:
    """Return the published code with weights from a file, by default its raft-things.pth.

    Raise UserError that says how to get the code or the weights if one of them is missing.
    """
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
    model.load_state_dict(strip_prefix(read_weights(weights, "--flow_weights")))
    model = model.to(device).eval()
    return RaftFlow(lambda a, b: model(a, b, iters=UPDATES, test_mode=True)[1], device)
