"""Weights of pretrained networks: a local file, or the network's own download."""

import socket
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from torch import nn

from command_line import UserError
from preprocessing.errors import NoWeights

CONNECT_SECONDS = 10  # a machine without internet is told so soon


def load_weights(network: nn.Module, path: Path | None, url: str) -> None:
    """Fill a network from a file, or from `url` by way of torch's cache. Raises UserError saying what to do."""
    try:
        network.load_state_dict(strip_prefix(read_weights(path) if path else download_weights(url)))
    except RuntimeError as error:
        found = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
        raise UserError(f"{path or url}: weights of another network ({found[:120]}); expected those of {url}") from None


def read_weights(path: Path) -> dict:
    """The state dict in a local file; nothing in it is executed."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check --weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, UnpicklingError):
        raise UserError(f"{path}: not a weights file, or cut short; download it again") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds {type(state).__name__}, expected a dict of weights")
    return state


def strip_prefix(state: dict) -> dict:
    """Names without the prefix that multi-GPU training leaves."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def download_weights(url: str) -> dict:
    """The state dict behind a URL, downloaded once. Raises UserError where it can't be had."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise NoWeights(
            f"no weights at hand and none could be downloaded ({reason}); "
            f"get {url} elsewhere and give it as --weights FILE (unwrap_video.py: --mask_weights, --flow_weights)"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
