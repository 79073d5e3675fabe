"""A second device without hardware: its tensors hold what the CPU computes, and what makes the host wait is noted.

It finds what a GPU would: tensors on two devices in one operation, `.numpy()` without `.cpu()`, and copies and readings
that stop the host until the device is done; not how large a copy is, nor what hides within an operation. PyTorch's
interface for backends in Python is experimental; without it `DEVICE` is None.
"""

import traceback
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

try:
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
except ImportError:
    DEVICE = None
else:

    class Backend(_DummyBackendModule):
        def get_amp_supported_dtype(self):
            return [torch.bfloat16]

    _setup_privateuseone_for_python_backend("elsewhere", backend_module=Backend())
    DEVICE = torch.device("elsewhere", 0)

ROOT = Path(__file__).resolve().parents[1]
READINGS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")
COPIES = ("_to_copy", "copy_")
INDEXING = ("index", "index_put", "index_put_")


class ElsewhereTensor(Tensor):
    """A tensor on the second device; `held` is what it holds, on the CPU."""

    @staticmethod
    def __new__(cls, held: Tensor):
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return computed(operation, args, kwargs or {}, [])

    def tolist(self):
        return self.cpu().tolist()

    def new_tensor(self, data, dtype=None):
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)  # as PyTorch does it, waiting included

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)


class Watched(TorchDispatchMode):
    """While it is on, tensors can be made on the second device; `waits` says where the host waited for it."""

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return computed(operation, args, kwargs or {}, self.waits)


def computed(operation, args, kwargs, waits: list[str]):
    """An operation, on the CPU, with its results where they belong. Raises RuntimeError if it mixes devices."""
    name = operation.__name__.split(".")[0]
    tensors = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    is_from = any(isinstance(each, ElsewhereTensor) for each in tensors)
    device = kwargs.get("device")
    is_to = is_from if device is None else torch.device(device).type == DEVICE.type
    if name == "copy_":
        is_to, is_from = isinstance(args[0], ElsewhereTensor), isinstance(args[1], ElsewhereTensor)
    if waiting := what_waits(name, args, kwargs, is_from, is_to):
        waits.append(f"{waiting} at {place()}")
    if is_mixed(name, args, tensors):
        raise RuntimeError(f"{name} of tensors on two devices at {place()}")
    kwargs = kwargs | ({"device": "cpu"} if "device" in kwargs else {})
    held_args, held_kwargs = pytree.tree_map_only(ElsewhereTensor, lambda each: each.held, (args, kwargs))
    result = operation(*held_args, **held_kwargs)
    if not is_to or name == "_local_scalar_dense":
        return result
    if name == "_to_copy" and not is_from:
        result = result.clone()  # the CPU would hand out the same memory
    return return_and_correct_aliasing(operation, args, kwargs, pytree.tree_map_only(Tensor, ElsewhereTensor, result))


def is_mixed(name: str, args, tensors: list[Tensor]) -> bool:
    """True if an operation has tensors on both devices, other than numbers (tensors without dimensions) on the CPU."""
    if name in COPIES:
        return False
    if name in INDEXING and isinstance(args[0], ElsewhereTensor):  # its indices may lie on the CPU
        tensors = [each for each in (args[0], *args[2:]) if isinstance(each, Tensor)]
    are_elsewhere = {isinstance(each, ElsewhereTensor) for each in tensors if each.dim()}
    return len(are_elsewhere) > 1


def what_waits(name: str, args, kwargs, is_from: bool, is_to: bool) -> str | None:
    """Why the host has to wait for the device in an operation, or None."""
    if is_from and name in READINGS:
        return "a value is read"
    if is_from and name in INDEXING:
        picks = [each for each in pytree.tree_leaves(args[1]) if isinstance(each, Tensor)]
        if any(each.dtype in (torch.bool, torch.uint8) for each in picks):
            return "a mask chooses elements"
        if any(not isinstance(each, ElsewhereTensor) for each in picks):
            return "an index comes from the CPU"
    if name in COPIES and is_from != is_to:
        is_late = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
        return None if is_late and is_to else "a copy"
    return None


def place() -> str:
    """The line of the project that is being run."""
    ours = [
        each for each in traceback.extract_stack() if Path(each.filename).parent.parts[: len(ROOT.parts)] == ROOT.parts
    ]
    ours = [each for each in ours if ".venv" not in each.filename and "tests" not in Path(each.filename).parts]
    return f"{ours[-1].filename}:{ours[-1].lineno}: {ours[-1].line}" if ours else "a test"
