"""The ops of the NumPy module on tensors of other libraries."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import pytest
from numpy_cases import address, make

from sturdy.numpy import push_pull_conv2d, push_pull_conv2d_backward


class Producer:
    """A library that exports a NumPy array, in one of the ways that libraries do."""

    def __init__(self, array: np.ndarray, kind: str = "versioned", device: tuple[int, int] = (1, 0)) -> None:
        self.array = array
        self.kind = kind
        self.device = device
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **wishes: Any) -> Any:
        self.asked.append(wishes)
        if self.kind == "versioned":
            return self.array.__dlpack__(max_version=(1, 1))
        if self.kind == "no versions" and wishes:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        if self.kind == "broken":
            raise RuntimeError("not today")
        if self.kind == "nonsense":
            return 42
        return self.array.__dlpack__()  # a capsule of the older kind, whatever was asked for: as JAX does


@pytest.mark.parametrize("kind", ["versioned", "legacy", "no versions"])
def test_dlpack_inputs(kind: str) -> None:
    arrays = make({})
    wanted = push_pull_conv2d(**arrays)
    producers = {name: Producer(array, kind) for name, array in arrays.items()}
    counts = [sys.getrefcount(array) for array in arrays.values()]
    np.testing.assert_array_equal(push_pull_conv2d(**producers), wanted)
    asked = {"versioned": 1, "legacy": 1, "no versions": 2}[kind]
    for producer in producers.values():
        assert producer.asked[0] == {"max_version": (1, 1)}
        assert len(producer.asked) == asked
    assert [sys.getrefcount(array) for array in arrays.values()] == counts  # the loans were given back


def test_dlpack_output_needs_leave_to_write() -> None:
    x, w = make({})["input"], make({})["weight"]
    wanted = push_pull_conv2d(x, w)
    out = np.zeros_like(wanted)
    versioned = Producer(out)
    assert push_pull_conv2d(x, w, out=versioned) is versioned
    np.testing.assert_array_equal(out, wanted)
    out[:] = 7
    for producer in (Producer(out, "legacy"), Producer(out, "no versions")):
        with pytest.raises(BufferError, match="out is read-only, or its library does not say"):
            push_pull_conv2d(x, w, out=producer)
    out.flags.writeable = False
    with pytest.raises(BufferError, match="out is read-only"):
        push_pull_conv2d(x, w, out=Producer(out))
    assert (out == 7).all()


def test_dlpack_devices_and_failures() -> None:
    arrays = make({})
    x, w = arrays["input"], arrays["weight"]
    with pytest.raises(BufferError, match="input must be in CPU memory, got a tensor on DLPack device type 2"):
        push_pull_conv2d(Producer(x, device=(2, 0)), w)
    np.testing.assert_array_equal(push_pull_conv2d(Producer(x, device=(3, 0)), w), push_pull_conv2d(x, w))  # pinned
    with pytest.raises(RuntimeError, match="not today"):
        push_pull_conv2d(Producer(x, "broken"), w)
    with pytest.raises(BufferError, match="__dlpack__ did not return a DLPack capsule"):
        push_pull_conv2d(Producer(x, "nonsense"), w)


def test_dlpack_version_of_the_future() -> None:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    memory = (ctypes.c_uint32 * 64)(2, 0)  # major version 2; the rest may mean anything

    class Future(Producer):
        def __dlpack__(self, **wishes: Any) -> Any:
            return new(ctypes.addressof(memory), b"dltensor_versioned", None)

    arrays = make({})
    with pytest.raises(BufferError, match="input came as DLPack version 2"):
        push_pull_conv2d(Future(arrays["input"]), arrays["weight"])


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    arrays = make({})
    wanted = push_pull_conv2d(**arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    out = torch.full(wanted.shape, torch.nan)
    before = address(out)
    assert push_pull_conv2d(**tensors, out=out) is out
    assert address(out) == before
    np.testing.assert_array_equal(out.numpy(), wanted)
    assert isinstance(push_pull_conv2d(**tensors), np.ndarray)
    with pytest.raises(BufferError, match="require gradient"):
        push_pull_conv2d(tensors["input"].requires_grad_(), arrays["weight"])


def test_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    from sturdy.functional import push_pull_conv2d as torch_op

    arrays = make({})
    tensors = {name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    wanted = torch_op(**leaves, avg_kernel_size=3, keep_push=False)
    with pytest.raises(TypeError, match="NumPy has no bfloat16 to return the result in; give out"):
        push_pull_conv2d(**tensors, avg_kernel_size=3)
    out = torch.empty_like(wanted)
    push_pull_conv2d(**tensors, avg_kernel_size=3, out=out)
    assert torch.equal(out, wanted)

    grad_out = torch.ones_like(wanted)
    wanted.backward(grad_out)
    del tensors["bias"]
    with pytest.raises(TypeError, match="NumPy has no bfloat16 to return the result in; give out"):
        push_pull_conv2d_backward(grad_out, **tensors, avg_kernel_size=3)
    vectors = [torch.empty(6), torch.empty(6)]
    memory = (torch.empty_like(tensors["input"]), torch.empty_like(tensors["weight"]), *vectors)
    grads = push_pull_conv2d_backward(grad_out, **tensors, avg_kernel_size=3, out=memory)
    for name, leaf in leaves.items():
        assert torch.equal(getattr(grads, name).bfloat16(), leaf.grad), name


def test_jax_arrays() -> None:
    jnp = pytest.importorskip("jax.numpy")
    arrays = make({})
    wanted = push_pull_conv2d(**arrays)
    theirs = {name: jnp.asarray(array) for name, array in arrays.items()}
    np.testing.assert_array_equal(push_pull_conv2d(**theirs), wanted)
    with pytest.raises(BufferError, match="out is read-only"):
        push_pull_conv2d(**arrays, out=jnp.zeros(wanted.shape))
