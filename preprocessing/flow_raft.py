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
from preprocessing.weights import load_weights, read_weights, strip_prefix

THIRDPARTY = Path(__file__).resolve().parents[1] / "thirdparty" / "RAFT"
MULTIPLE_PX, SMALLEST_PX = 8, 128  # RAFT halves its input three times and its correlations three times more
UPDATES = 20  # refinements per pair, as published


class RaftFlow:
    """Two frames (H, W, 3) uint8 -> flow from the first to the second and back, (H, W, 2) pixels each.

    network: pictures (N, 3, h, w) in 0..255, of sides that RAFT accepts, and as many others -> flow (N, 2, h, w) from
    each to its other. Both directions are one batch, in half precision on a GPU. Pictures are padded to such sides,
    and the padding is cropped off the flow.
    """

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor], device: torch.device):
        self.network, self.device = network, device

    @torch.inference_mode()
    def __call__(
        self, image: NDArray[np.uint8], following: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        height, width = image.shape[:2]
        padded = [max(SMALLEST_PX, -(-side // MULTIPLE_PX) * MULTIPLE_PX) for side in (height, width)]
        margins = (0, padded[1] - width, 0, padded[0] - height)
        both = torch.from_numpy(np.stack((image, following))).to(self.device).permute(0, 3, 1, 2).float()
        both = functional.pad(both, margins, mode="replicate")
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            flow = self.network(both, both.flip(0))
        there, back = flow[..., :height, :width].permute(0, 2, 3, 1).float().cpu().numpy()
        return there, back


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
    model.load_state_dict(strip_prefix(read_weights(weights)))
    model = model.to(device).eval()
    return RaftFlow(lambda a, b: model(a, b, iters=UPDATES, test_mode=True)[1], device)
