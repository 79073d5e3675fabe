"""Load the weights of pretrained networks from a local file or from the network's download address."""

import socket
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from command_line import UserError
from preprocessing.errors import NoWeights

CONNECT_TIMEOUT_S = 10  # Seconds after which a download without an answer is given up.

StateDict = dict[str, Any]  # tensors by the names of the parameters and buffers


def load_network(make_network: Callable[[], nn.Module], path: Path | None, url: str, flag: str) -> nn.Module:
    """Return a network with its weights from a local file, or from `url` if there is none.

    The network is made after its weights are there, because it takes time and memory.

    flag: the flag of `unwrap_video.py` that gives the file. Raise UserError if the file is not usable or belongs to
    another network, and NoWeights if the download fails.
    """
    state = strip_prefix(read_weights(path, flag) if path else download_weights(url, flag))
    network = make_network()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
        raise UserError(
            f"{path or url}: weights of another network ({reason[:120]}); expected those of {url}"
        ) from None
    return network


def make_torchvision_network(name: str, **options: object) -> nn.Module:
    """Return a network of torchvision, by its name there, with random weights.

    Raise NoWeights if torchvision is not installed, or belongs to another release of torch.
    """
    try:
        from torchvision.models import get_model
    except (ImportError, RuntimeError, AttributeError, OSError) as error:  # It may not fit torch in several ways.
        reason = str(error).partition("\n")[0]
        raise NoWeights(
            f"torchvision cannot be imported ({reason}); install the release that belongs to torch {torch.__version__}"
        ) from None
    return get_model(name, weights=None, **options)


def read_weights(path: Path, flag: str) -> StateDict:
    """Return the state dict of a local file, without executing anything in it.

    flag: the flag of `unwrap_video.py` that gives the file. Raise UserError if the file does not exist, is damaged or
    holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check --weights, in unwrap_video.py {flag}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, UnpicklingError):
        raise UserError(f"{path}: not a weights file, or cut short; download it again") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds {type(state).__name__}, expected a dict of weights")
    return state


def strip_prefix(state: StateDict) -> StateDict:
    """Return the state dict without the prefix `module.` that multi-GPU training adds to the names."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def is_downloaded(url: str) -> bool:
    """Return whether the weights at a URL were downloaded before."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file()


def download_weights(url: str, flag: str) -> StateDict:
    """Return the state dict at a URL, which torch downloads once and then caches. Raise NoWeights if that fails.

    flag: the flag of `unwrap_video.py` that gives a file instead.
    """
    timeout_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT_S)
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise NoWeights(
            f"no weights at hand and none could be downloaded ({reason}); get {url} elsewhere and give the file: "
            f"{flag} FILE (--weights FILE in the scripts that start with preprocess_)"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout_before)
