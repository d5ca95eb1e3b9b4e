"""What torch must know of every op beyond its kernels, and the choice between the two namespaces that hold them.

``sturdy`` is the library of the package. ``sturdy_simt`` and ``sturdy_race`` hold the same ops in test builds that run
the CUDA kernels on the CPU; only the tests choose them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sturdy._errors import from_message

_namespace = "sturdy"
_registrars: list[Callable[[str], None]] = []
_registered: set[str] = set()


def op_family(registrar: Callable[[str], None]) -> Callable[[str], None]:
    """Mark a function that registers fakes, autograd, autocast and vmap of a family's ops in a given namespace."""
    _registrars.append(registrar)
    for namespace in _registered:
        registrar(namespace)
    return registrar


def register(namespace: str) -> None:
    """Give the ops of ``namespace``, whose library is loaded, everything that is registered from Python."""
    if namespace not in _registered:
        _registered.add(namespace)
        for registrar in _registrars:
            registrar(namespace)


@contextmanager
def use_namespace(namespace: str) -> Iterator[None]:
    """Let the functional ops call the kernels of another namespace. For tests."""
    global _namespace
    previous, _namespace = _namespace, namespace
    try:
        yield
    finally:
        _namespace = previous


@torch.compiler.assume_constant_result  # a compiled graph keeps what held when it was traced
def tf32_allowed() -> bool:
    """Whether torch is set to multiply float32 as tf32 on CUDA: off unless someone allowed it."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def call(name: str, *args: Any) -> Any:
    """Call the op ``name`` of the current namespace; its failures become the documented exceptions."""
    op = getattr(getattr(torch.ops, _namespace), name)
    if torch.compiler.is_compiling():
        return op(*args)  # a failure while tracing is the compiler's to report
    try:
        return op(*args)
    except RuntimeError as error:
        documented = from_message(str(error))
        if documented is None:
            raise
    raise documented


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """The format that outputs of an op on ``tensor`` take; the same rule as ``output_format`` in the C++ binding."""
    if tensor.dim() == 4 and tensor.shape[1] > 1 and tensor.stride(1) == 1 and not tensor.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


_LIBRARIES: dict[str, torch.library.Library] = {}


def _library(namespace: str) -> torch.library.Library:
    if namespace not in _LIBRARIES:
        _LIBRARIES[namespace] = torch.library.Library(namespace, "IMPL")
    return _LIBRARIES[namespace]


def register_autocast(
    namespace: str, name: str, cast: Callable[[torch.dtype, tuple[Any, ...]], tuple[Any, ...]]
) -> None:
    """Let ``cast(dtype, args)`` choose what autocast does to the arguments of an op.

    ``torch.library.register_autocast`` knows one fixed dtype for all arguments; this follows the dtype of the autocast
    region and leaves alone what the op wants in float32.
    """
    op = getattr(getattr(torch.ops, namespace), name).default
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(*args: Any, _device: str = device, _excluded: Any = excluded) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(_excluded):
                return op(*cast(torch.get_autocast_dtype(_device), args))

        _library(namespace).impl(name, kernel, key)


def autocast_tensor(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` in the autocast dtype, under torch's own rule: float64 and non-floating tensors stay as they are."""
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if eligible else tensor


def vmap_by_loop(op: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]) -> Callable[..., Any]:
    """A vmap rule that calls the op once per element of the mapped dimension and stacks the results."""

    def pick(arg: Any, dim: Any, index: int) -> Any:
        return arg.select(dim, index) if isinstance(arg, torch.Tensor) and dim is not None else arg

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        def element(index: int) -> Any:
            return op(*(pick(arg, dim, index) for arg, dim in zip(args, in_dims, strict=True)))

        results = [element(index) for index in range(info.batch_size)]
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        outputs = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return outputs, (0,) * len(outputs)

    return rule
