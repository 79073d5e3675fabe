"""A simulated second device without hardware: the CPU computes its tensors, and operations that make the host wait
for the device are recorded.

The simulation finds errors that a GPU would show: an operation with tensors on two devices, `.numpy()` without
`.cpu()`, 64-bit floats, which Apple's GPUs do not have, and copies and readings for which the host waits until the
device is done. It does not notice how large a copy
is, or what happens inside an operation. PyTorch's interface for backends in Python is experimental; without it `DEVICE`
is None. It is None beside a CUDA GPU, too, because PyTorch then takes the simulation for the machine's GPU.
"""

import linecache
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

try:
    if torch.cuda.is_available():
        raise ImportError
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
except ImportError:
    DEVICE = None
else:

    class Backend(_DummyBackendModule):
        def get_amp_supported_dtype(self):
            return [torch.bfloat16]

    _setup_privateuseone_for_python_backend("simulated", backend_module=Backend())
    DEVICE = torch.device("simulated", 0)

ROOT = Path(__file__).resolve().parents[1]
# Names of PyTorch's operations.
READINGS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")
COPIES = ("_to_copy", "copy_")
INDEXING = ("index", "index_put", "index_put_")


class SimulatedTensor(Tensor):
    """A tensor on the simulated device; `cpu_tensor` has its values."""

    @staticmethod
    def __new__(cls, cpu_tensor: Tensor):
        return Tensor._make_wrapper_subclass(
            cls,
            cpu_tensor.shape,
            strides=cpu_tensor.stride(),
            storage_offset=cpu_tensor.storage_offset(),
            dtype=cpu_tensor.dtype,
            device=DEVICE,
        )

    def __init__(self, cpu_tensor: Tensor):
        self.cpu_tensor = cpu_tensor

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run_operation(operation, args, kwargs or {}, [], [])

    def tolist(self):
        return self.cpu().tolist()

    def new_tensor(self, data, dtype=None):
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)  # as PyTorch does it, including the wait

    def __reduce_ex__(self, protocol):
        return self.cpu_tensor.__reduce_ex__(protocol)


class DeviceSimulation(TorchDispatchMode):
    """A context in which tensors can be made on the simulated device.

    `waits` lists where the host waited for the device, `copies` where something was copied to it, with or without a
    wait. While `operations` is a list, all operations are added to it with the shapes of their tensors and their other
    arguments; to write these down takes long.
    """

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self.copies: list[str] = []
        self.operations: list[str] | None = None

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if self.operations is not None:
            leaves = pytree.tree_leaves((args, kwargs or {}))
            arguments = [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self.operations.append(f"{operation} {arguments}")
        return run_operation(operation, args, kwargs or {}, self.waits, self.copies)


def run_operation(operation: Callable, args: tuple, kwargs: dict[str, Any], waits: list[str], copies: list[str]) -> Any:
    """Run an operation on the CPU and return its results on the device on which they belong.

    The reason and the line of the project are added to `waits` if the host has to wait for the device, and the line to
    `copies` if something is copied to the device. Raises RuntimeError if the operation mixes tensors on two devices.
    """
    name = operation.__name__.split(".")[0]
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    has_simulated_input = any(isinstance(tensor, SimulatedTensor) for tensor in tensors)
    device = kwargs.get("device")
    has_simulated_output = has_simulated_input if device is None else torch.device(device).type == DEVICE.type
    if name == "copy_":
        has_simulated_output, has_simulated_input = (isinstance(args[i], SimulatedTensor) for i in (0, 1))
    if reason := wait_reason(name, args, kwargs, has_simulated_input, has_simulated_output):
        waits.append(f"{reason} at {project_line()}")
    if name in COPIES and has_simulated_output and not has_simulated_input:
        copies.append(project_line())
    if mixes_devices(name, args, tensors):
        raise RuntimeError(f"{name} of tensors on two devices at {project_line()}")
    kwargs = kwargs | ({"device": "cpu"} if "device" in kwargs else {})
    cpu_args, cpu_kwargs = pytree.tree_map_only(SimulatedTensor, lambda tensor: tensor.cpu_tensor, (args, kwargs))
    result = operation(*cpu_args, **cpu_kwargs)
    if not has_simulated_output or name == "_local_scalar_dense":
        return result
    if any(leaf.dtype == torch.float64 for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)):
        raise RuntimeError(f"{name} makes 64-bit floats, which Apple's GPUs do not have, at {project_line()}")
    if name == "_to_copy" and not has_simulated_input:
        result = result.clone()  # because on the CPU the copy can share memory with the source
    return return_and_correct_aliasing(operation, args, kwargs, pytree.tree_map_only(Tensor, SimulatedTensor, result))


def mixes_devices(name: str, args: tuple, tensors: list[Tensor]) -> bool:
    """Return whether an operation has tensors on both devices. Tensors without dimensions may be on the CPU."""
    if name in COPIES:
        return False
    if name in INDEXING and isinstance(args[0], SimulatedTensor):  # Its indices may be on the CPU.
        tensors = [arg for arg in (args[0], *args[2:]) if isinstance(arg, Tensor)]
    are_simulated = {isinstance(tensor, SimulatedTensor) for tensor in tensors if tensor.dim()}
    return len(are_simulated) > 1


def wait_reason(
    name: str, args: tuple, kwargs: dict[str, Any], has_simulated_input: bool, has_simulated_output: bool
) -> str | None:
    """Return why the host has to wait for the device in an operation, or None."""
    if has_simulated_input and name in READINGS:
        return "a value is read"
    if has_simulated_input and name in INDEXING:
        indices = [leaf for leaf in pytree.tree_leaves(args[1]) if isinstance(leaf, Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "a mask chooses elements"
        if any(not isinstance(index, SimulatedTensor) for index in indices):
            return "an index comes from the CPU"
    if name in COPIES and has_simulated_input != has_simulated_output:
        is_async = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
        return None if is_async and has_simulated_output else "a copy"
    return None


def project_line() -> str:
    """Return the line of the project's code that is being run, or "a test" if only a test's code is."""
    frame = sys._getframe()  # Several thousand waits ask for it, and `traceback` reads the whole stack.
    while frame is not None:
        name, line = frame.f_code.co_filename, frame.f_lineno
        if is_of_project(name):
            return f"{name}:{line}: {linecache.getline(name, line).strip()}"
        frame = frame.f_back
    return "a test"


@cache
def is_of_project(name: str) -> bool:
    """Return whether a file belongs to the project, and not to its tests or its environment."""
    path = Path(name)
    return path.is_relative_to(ROOT) and not {".venv", "tests"} & set(path.relative_to(ROOT).parts)
