"""The C library through ctypes alone: values, refusals that never crash, messages per thread, threads, forks."""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from ctypes import c_int64
from typing import Any

import numpy as np
import pytest
from c_library import (
    CHANNEL_RANGE,
    CPU,
    CUDA,
    ECUDA,
    EINVAL,
    ETYPE,
    EUNSUPPORTED,
    OK,
    PARALLEL_FOR,
    SIGNATURES,
    Call,
    Context,
    Device,
    DType,
    Options,
    Tensor,
    context,
    load,
    message,
    options,
    view,
)
from embedding_support import ROOT, run, run_python

from sturdy._load import library_path


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return load()


@pytest.fixture(autouse=True)
def threads(library: ctypes.CDLL) -> Iterator[None]:
    """Leave the built-in pool as it was found."""
    before = library.sturdy_get_num_threads()
    yield
    library.sturdy_set_num_threads(before)


def test_layouts_agree_with_the_header(tmp_path: Any) -> None:
    """The structs above are what a C compiler makes of the header."""
    lines = ["#include <stdio.h>", '#include "sturdy/pushpull.h"', "int main(void) {"]
    for name, struct in (("tensor", Tensor), ("context", Context), ("push_pull_conv2d_options", Options)):
        lines.append(f'printf("{name} %zu\\n", sizeof(sturdy_{name}));')
        for field, _ in struct._fields_:
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof(sturdy_{name}, {field}));')
    (tmp_path / "layout.c").write_text("\n".join([*lines, "return 0; }"]))
    run("gcc", "-std=c99", f"-I{ROOT / 'csrc' / 'include'}", tmp_path / "layout.c", "-o", tmp_path / "layout")
    wanted = []
    for name, struct in (("tensor", Tensor), ("context", Context), ("push_pull_conv2d_options", Options)):
        wanted.append(f"{name} {ctypes.sizeof(struct)}")
        wanted += [f"{name}.{field} {getattr(struct, field).offset}" for field, _ in struct._fields_]
    assert run(tmp_path / "layout").stdout.split("\n")[:-1] == wanted


def test_every_function_of_the_headers_is_here(library: ctypes.CDLL) -> None:
    text = "".join(path.read_text() for path in (ROOT / "csrc" / "include" / "sturdy").glob("*.h"))
    declared = set(re.findall(r"STURDY_API\s+[\w\s*]*?\b(sturdy_\w+)\(", text))
    assert declared == set(SIGNATURES)
    for name in declared:
        getattr(library, name)


@pytest.mark.parametrize("name", ["sturdy_core", "sturdy_torch"])
def test_exported_symbols(name: str) -> None:
    path = library_path(name)
    if not path.exists():
        pytest.skip(f"{name} is not in this build")
    lines = run("nm", "-D", "--defined-only", path).stdout.splitlines()
    names = {line.split()[-1] for line in lines}
    assert names and all(symbol.startswith("sturdy_") for symbol in names), sorted(names)


def test_needed_libraries() -> None:
    """Nothing of Python, torch, OpenMP or a CUDA driver: the library loads wherever there is a C++ runtime."""
    needed = re.findall(r"\(NEEDED\).*\[(.*?)\]", run("readelf", "-d", library_path("sturdy_core")).stdout)
    allowed = r"(libstdc\+\+|libm|libgcc_s|libc|libpthread|librt|libdl|ld-linux-x86-64)\.so\.\d+"
    assert needed and all(re.fullmatch(allowed, name) for name in needed), needed


def test_version_and_build_info(library: ctypes.CDLL) -> None:
    import sturdy

    assert library.sturdy_abi_version() == 1
    assert library.sturdy_version().decode() == sturdy.__version__
    info = json.loads(library.sturdy_build_info())
    assert info["version"] == sturdy.__version__ and info["abi"] == 1
    assert info["cpu_kernels_used"] in info["cpu_kernels"]


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, CHANNEL_RANGE])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_values_equal_the_numpy_module(library: ctypes.CDLL, dtype: str, flags: int) -> None:
    from sturdy.numpy import push_pull_conv2d, push_pull_conv2d_backward

    call = Call(dtype)
    call.options = options(pool=(3, 3), flags=flags)
    more = {"avg_kernel_size": 3, "range_dims": "channel" if flags else "filter"}
    assert call.infer(library) == OK
    assert call.forward(library) == OK, message(library)
    a = call.arrays
    out = push_pull_conv2d(a["input"], a["weight"], a["inhibition"], a["bias"], **more)
    np.testing.assert_array_equal(a["out"], out)
    vectors = np.float64 if dtype == "float64" else np.float32
    for name in ("grad_inhibition", "grad_bias"):
        a[name] = np.full(6, np.nan, vectors)
        call.views[name] = view(a[name])
    assert call.backward(library) == OK, message(library)
    grads = push_pull_conv2d_backward(a["grad_out"], a["input"], a["weight"], a["inhibition"], **more, push=a["push"])
    for name, grad in grads._asdict().items():
        np.testing.assert_array_equal(a[f"grad_{name}"], grad, err_msg=name)


def test_optional_arguments_and_compact_strides(library: ctypes.CDLL) -> None:
    whole = Call()
    assert whole.forward(library) == OK
    call = Call()
    for name in ("input", "weight", "out"):
        call.views[name].strides = None
    call.views["push"] = None
    assert call.forward(library) == OK, message(library)
    np.testing.assert_array_equal(call.arrays["out"], whole.arrays["out"])
    call.views["inhibition"] = call.views["bias"] = None
    call.options.strength = 0.0
    assert call.forward(library) == OK, message(library)
    np.testing.assert_array_equal(call.arrays["out"], np.maximum(whole.arrays["push"], 0))


def test_byte_offset(library: ctypes.CDLL) -> None:
    whole, call = Call(), Call()
    assert whole.forward(library) == OK
    array = call.arrays["input"]
    memory = np.full(array.size + 5, np.nan, np.float32)
    memory[5:] = array.ravel()
    call.views["input"].data = memory.ctypes.data
    call.views["input"].byte_offset = 20
    assert call.forward(library) == OK
    np.testing.assert_array_equal(call.arrays["out"], whole.arrays["out"])


def test_infer_reads_no_data(library: ctypes.CDLL) -> None:
    call = Call()
    for name in ("input", "weight", "inhibition", "bias", "out"):
        call.views[name].data = None
    call.views["out"].shape = (c_int64 * 4)(-1, -1, -1, -1)
    call.options = options(stride=(2, 1), padding=(1, 0, 2, 2))
    assert call.infer(library) == OK
    assert call.views["out"].shape[:4] == [2, 6, 4, 13]
    assert library.sturdy_push_pull_conv2d_workspace(call._options(), *call._pass("input", "weight")) == 0


# ---- threads ---------------------------------------------------------------------------------------------------------


def _large(library: ctypes.CDLL, where: Context | None = None) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    call = Call()
    arrays = {
        "input": rng.standard_normal((3, 8, 40, 40), dtype=np.float32),
        "weight": rng.standard_normal((20, 8, 3, 3), dtype=np.float32),
        "out": np.empty((3, 20, 38, 38), np.float32),
        "push": np.empty((3, 20, 38, 38), np.float32),
        "grad_out": rng.standard_normal((3, 20, 38, 38), dtype=np.float32),
        "grad_input": np.empty((3, 8, 40, 40), np.float32),
        "grad_weight": np.empty((20, 8, 3, 3), np.float32),
        "grad_inhibition": np.empty(20, np.float32),
        "grad_bias": np.empty(20, np.float32),
        "inhibition": rng.random(20, dtype=np.float32),
        "bias": rng.random(20, dtype=np.float32),
    }
    call.arrays = arrays
    call.views = {name: view(array) for name, array in arrays.items()}
    call.options = options(pool=(5, 3))
    call.context = where
    assert call.forward(library) == OK, message(library)
    assert call.backward(library) == OK, message(library)
    return [arrays[name] for name in ("out", "push", "grad_input", "grad_weight", "grad_inhibition", "grad_bias")]


def test_number_of_threads_does_not_change_results(library: ctypes.CDLL) -> None:
    library.sturdy_set_num_threads(1)
    wanted = _large(library)
    for number in (2, 3, 5):
        assert library.sturdy_set_num_threads(number) == OK
        assert library.sturdy_get_num_threads() == number
        for found, same in zip(_large(library), wanted, strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("piece", [1, 7, 10**9])
def test_injected_threads(library: ctypes.CDLL, piece: int) -> None:
    """Ranges of any length in any order give the same numbers."""
    wanted = _large(library)
    used = []

    @PARALLEL_FOR
    def backwards(pool: Any, n: int, grain: int, body: Callable[..., None], argument: Any) -> None:
        used.append((pool, n, grain))
        for begin in reversed(range(0, n, piece)):
            body(argument, begin, min(n, begin + piece))

    for found, same in zip(_large(library, context(pool=0x5A, parallel_for=backwards)), wanted, strict=True):
        np.testing.assert_array_equal(found, same)
    assert used and all(pool == 0x5A and n > 0 and grain > 0 for pool, n, grain in used)


def test_thread_settings(library: ctypes.CDLL) -> None:
    import sturdy

    assert library.sturdy_set_num_threads(-1) == EINVAL
    assert message(library) == "sturdy_set_num_threads: n must be at least 0, got -1"
    sturdy.set_num_threads(3)
    assert sturdy.get_num_threads() == library.sturdy_get_num_threads() == 3
    with pytest.raises(ValueError, match="n must be at least 0, got -2"):
        sturdy.set_num_threads(-2)
    assert sturdy.get_num_threads() == 3
    sturdy.set_num_threads(0)
    assert sturdy.get_num_threads() >= 1


def test_threads_may_change_during_calls(library: ctypes.CDLL) -> None:
    wanted = _large(library)
    wrong = []

    def work() -> None:
        for _ in range(10):
            if not all(np.array_equal(a, b) for a, b in zip(_large(library), wanted, strict=True)):
                wrong.append(threading.get_ident())

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for number in itertools.cycle((1, 2, 3, 4)):
        library.sturdy_set_num_threads(number)
        if not any(worker.is_alive() for worker in workers):
            break
    for worker in workers:
        worker.join()
    assert not wrong


def test_last_error_belongs_to_its_thread(library: ctypes.CDLL) -> None:
    assert library.sturdy_set_num_threads(-5) == EINVAL
    seen = []

    def work() -> None:
        seen.append(message(library))
        library.sturdy_set_num_threads(-6)
        seen.append(message(library))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["", "sturdy_set_num_threads: n must be at least 0, got -6"]
    assert message(library).endswith("got -5")


FORKED = """
import os, signal, sys
import numpy as np
import sturdy
from sturdy.numpy import push_pull_conv2d

sturdy.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((8, 8, 40, 40), dtype=np.float32)
w = np.random.default_rng(1).standard_normal((16, 8, 3, 3), dtype=np.float32)
wanted = push_pull_conv2d(x, w, avg_kernel_size=3)
for generation in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        for _ in range(5):
            same = np.array_equal(push_pull_conv2d(x, w, avg_kernel_size=3), wanted)
        threads = len(os.listdir("/proc/self/task"))
        if not same or threads != 3:
            print(f"child: same numbers: {same}, threads: {threads}")
        if generation < 2 and same and threads == 3:
            continue  # the child's own child is next
        os._exit(0 if same and threads == 3 else 1)
    _, status = os.waitpid(child, 0)
    print("child ended with", status)
    os._exit(0 if status == 0 and np.array_equal(push_pull_conv2d(x, w, avg_kernel_size=3), wanted) else 1)
"""


def test_calls_after_a_fork() -> None:
    """A forked process has none of its parent's threads and makes its own, its children as well."""
    run_python("import warnings; warnings.simplefilter('ignore')\n" + FORKED)


# ---- refusals --------------------------------------------------------------------------------------------------------

FORWARD_TENSORS = ("input", "weight", "inhibition", "bias", "out", "push")
BACKWARD_TENSORS = (
    *("grad_out", "input", "weight", "inhibition", "push"),
    *("grad_input", "grad_weight", "grad_inhibition", "grad_bias"),
)
BOTH = [("forward", name) for name in FORWARD_TENSORS] + [("backward", name) for name in BACKWARD_TENSORS]
# A NULL there means "not given".
MAY_BE_ABSENT = {"inhibition", "bias", "push", "grad_input", "grad_weight", "grad_inhibition", "grad_bias"}


def spoil(tensor: Tensor, how: str) -> None:
    rank = tensor.ndim
    sizes = tensor.shape[:rank]
    if how == "NULL data":
        tensor.data = None
    elif how == "NULL shape":
        tensor.shape = None
    elif how == "negative size":
        tensor.shape = (c_int64 * rank)(*sizes[:-1], -sizes[-1])
    elif how == "another size":
        tensor.shape = (c_int64 * rank)(sizes[0] + 1, *sizes[1:])
        tensor.strides = None
    elif how == "vast":
        tensor.shape = (c_int64 * rank)(*([2**62] * rank))
        tensor.strides = None
    elif how == "negative rank":
        tensor.ndim = -1
    elif how == "rank 9":
        tensor.ndim = 9
    elif how == "rank 0":
        tensor.ndim = 0
    elif how == "int64":
        tensor.dtype = DType(0, 64, 1)
    elif how == "unknown dtype":
        tensor.dtype = DType(200, 32, 1)
    elif how == "two lanes":
        tensor.dtype = DType(2, 32, 2)
    elif how == "unknown device":
        tensor.device = Device(77, 0)
    elif how == "other device":
        tensor.device = Device(CUDA, 0)
    elif how == "unaligned":
        tensor.data = tensor.data + 1


SPOILED = {
    "NULL data": {EINVAL},
    "NULL shape": {EINVAL},
    "negative size": {EINVAL},
    "another size": {EINVAL},
    "vast": {EINVAL, EUNSUPPORTED},
    "negative rank": {EINVAL},
    "rank 9": {EINVAL},
    "rank 0": {EINVAL},
    "int64": {ETYPE},
    "unknown dtype": {ETYPE},
    "two lanes": {ETYPE},
    "unknown device": {EUNSUPPORTED},
    "other device": {EINVAL},
    "unaligned": {EINVAL},
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize(("direction", "name"), BOTH)
def test_spoiled_tensors(library: ctypes.CDLL, direction: str, name: str, how: str) -> None:
    call = Call()
    if direction == "backward":
        assert call.forward(library) == OK
    if how == "unknown device" and name != "input":
        # The first complaint wins, and that is on the input's device in every other tensor.
        call.views["input"].device = Device(CPU, 0)
    outputs = [key for key in call.arrays if key.startswith("grad_") and key != "grad_out"]
    outputs = outputs if direction == "backward" else ["out", "push"]
    spoil(call.views[name], how)
    status = getattr(call, direction)(library)
    said = message(library)
    assert status in SPOILED[how] | ({EINVAL} if how == "other device" else set()), said
    assert said.startswith("push_pull_conv2d_backward: " if direction == "backward" else "push_pull_conv2d: ") or (
        direction == "backward" and said.startswith("push_pull_conv2d: ")
    )
    assert name in said or how in ("another size", "other device"), said
    for output in outputs:
        assert np.isnan(call.arrays[output]).all(), f"{output} was written"


@pytest.mark.parametrize(("direction", "name"), BOTH)
def test_missing_tensors(library: ctypes.CDLL, direction: str, name: str) -> None:
    call = Call()
    if direction == "backward":
        assert call.forward(library) == OK
    call.views[name] = None
    status = getattr(call, direction)(library)
    if name in MAY_BE_ABSENT:
        assert status == OK, message(library)
    else:
        assert status == EINVAL
        assert f": {name} must not be NULL" in message(library)


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"struct_size": 0}, EINVAL, "options.struct_size must be at least"),
        ({"struct_size": ctypes.sizeof(Options) - 8}, EINVAL, "options.struct_size must be at least"),
        ({"struct_size": ctypes.sizeof(Options) + 8}, OK, ""),  # of a newer caller
        ({"flags": CHANNEL_RANGE}, OK, ""),
        ({"flags": CHANNEL_RANGE | 1 << 30}, EINVAL, "options.flags must have no bits but those of 3, got 1073741825"),
        ({"flags": 1 << 31}, EINVAL, "options.flags must have no bits but those of 3, got 2147483648"),
        ({"stride": (0, 1)}, EINVAL, "stride must be at least 1, got 0"),
        ({"stride": (1, -(2**63))}, EINVAL, f"stride must be at least 1, got {-(2**63)}"),
        ({"dilation": (1, 0)}, EINVAL, "dilation must be at least 1, got 0"),
        ({"dilation": (2**63 - 1, 1)}, EINVAL, "must not exceed the padded input"),
        ({"padding": (0, -1, 0, 0)}, EINVAL, "padding must be at least 0, got -1"),
        ({"padding": (2**63 - 1,) * 4}, EUNSUPPORTED, "the padded input would have more rows or columns than can be"),
        ({"padding": (2**63 - 1,) * 4, "dilation": (2**62, 2**62)}, EUNSUPPORTED, "more rows or columns than can be"),
        ({"padding": (2**30,) * 4}, EUNSUPPORTED, "the output would have more elements than can be addressed"),
        ({"groups": 0}, EINVAL, "groups must be at least 1, got 0"),
        ({"groups": -(2**63)}, EINVAL, "groups must be at least 1"),
        ({"groups": 2**63 - 1}, EINVAL, "input channels must be divisible by groups, got 4"),
        ({"pool": (2, 1)}, EINVAL, "avg_kernel_size must be odd and at least 1, got 2"),
        ({"pool": (1, -3)}, EINVAL, "avg_kernel_size must be odd and at least 1, got -3"),
    ],
)
def test_options(library: ctypes.CDLL, changes: dict[str, Any], status: int, said: str) -> None:
    call = Call()
    assert call.forward(library) == OK
    call.options = options(**changes)
    for direction in (call.infer, call.forward, call.backward):
        assert direction(library) == status, message(library)
        if status != OK:
            assert said in message(library)
    assert library.sturdy_push_pull_conv2d_workspace(call._options(), *call._pass("input", "weight")) == 0


def test_windows_and_strides_without_bound(library: ctypes.CDLL) -> None:
    """Large numbers that mean something: one output cell, a window over the whole map."""
    call = Call()
    call.options = options(pool=(2**63 - 1, 2**63 - 1))
    assert call.forward(library) == OK, message(library)
    assert np.isfinite(call.arrays["out"]).all()
    assert call.backward(library) == OK, message(library)
    call.options = options(stride=(2**63 - 1, 2**63 - 1))
    for name in ("out", "push", "grad_out"):
        call.arrays[name] = np.full((2, 6, 1, 1), 1, np.float32)
        call.views[name] = view(call.arrays[name])
    assert call.forward(library) == OK, message(library)
    assert call.backward(library) == OK, message(library)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"struct_size": 0}, "context.struct_size must be at least"),
        ({"struct_size": ctypes.sizeof(Context) - 8}, "context.struct_size must be at least"),
        ({"flags": 4}, "context.flags must be 0, got 4"),
    ],
)
def test_context(library: ctypes.CDLL, changes: dict[str, Any], said: str) -> None:
    call = Call()
    call.context = context(**changes)
    for direction in (call.forward, call.backward):
        assert direction(library) == EINVAL
        assert said in message(library)


def test_missing_options_and_results(library: ctypes.CDLL) -> None:
    call = Call()
    call.options = None
    for direction in (call.infer, call.forward, call.backward):
        assert direction(library) == EINVAL
        assert "options must not be NULL" in message(library)
    assert library.sturdy_push_pull_conv2d_workspace(None, None, None) == 0
    assert library.sturdy_push_pull_conv2d_backward_workspace(None, None, None) == 0
    call = Call()
    call.views["out"].shape = None
    assert call.infer(library) == EINVAL
    assert "out.shape must not be NULL" in message(library)
    call.views["out"] = None
    assert call.infer(library) == EINVAL


@pytest.mark.parametrize(
    ("direction", "output", "other"),
    [
        ("forward", "out", "input"),
        ("forward", "out", "weight"),
        ("forward", "out", "inhibition"),
        ("forward", "out", "bias"),
        ("forward", "push", "input"),
        ("forward", "push", "weight"),
        ("forward", "push", "out"),
        ("backward", "grad_input", "grad_out"),
        ("backward", "grad_input", "input"),
        ("backward", "grad_weight", "weight"),
        ("backward", "grad_weight", "push"),
        ("backward", "grad_bias", "inhibition"),
        ("backward", "grad_inhibition", "input"),
    ],
)
def test_shared_memory(library: ctypes.CDLL, direction: str, output: str, other: str) -> None:
    call = Call()
    mine, theirs = call.arrays[output], call.arrays[other]
    memory = np.zeros(mine.nbytes + theirs.nbytes, np.uint8)
    call.views[output].data = memory.ctypes.data
    call.views[other].data = memory.ctypes.data + mine.nbytes - 4  # the last element is shared
    assert getattr(call, direction)(library) == EINVAL
    said = message(library)
    assert output in said and other in said and "must not share memory with" in said
    call.views[other].data = memory.ctypes.data + mine.nbytes  # side by side is fine
    assert getattr(call, direction)(library) == OK, message(library)


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations(("grad_input", "grad_weight", "grad_inhibition", "grad_bias"), 2))
)
def test_outputs_share_no_memory_among_themselves(library: ctypes.CDLL, first: str, second: str) -> None:
    call = Call()
    call.views[second].data = call.views[first].data
    assert call.backward(library) == EINVAL
    assert "must not share memory with" in message(library)


def test_outputs_that_overlap_themselves(library: ctypes.CDLL) -> None:
    call = Call()
    call.views["out"].strides = (c_int64 * 4)(0, 63, 9, 1)
    assert call.forward(library) == EINVAL
    assert "out must be contiguous or channels-last" in message(library)
    call = Call()
    call.views["grad_bias"].strides = (c_int64 * 1)(0)
    assert call.backward(library) == EINVAL
    assert "grad_bias" in message(library)


def test_cuda_tensors_without_cuda(library: ctypes.CDLL) -> None:
    if json.loads(library.sturdy_build_info())["cuda"] is not None:
        pytest.skip("this build has CUDA kernels")
    call = Call()
    for tensor in call.views.values():
        tensor.device = Device(CUDA, 0)
    assert call.forward(library) == EUNSUPPORTED
    assert "this build has no CUDA kernels" in message(library)


def test_cuda_tensors_without_a_driver(library: ctypes.CDLL) -> None:
    """The refusal names the CUDA version of the library and what was found."""
    cuda = json.loads(library.sturdy_build_info())["cuda"]
    if cuda is None or cuda["driver"] != 0:
        pytest.skip("needs CUDA kernels in the build and no NVIDIA driver")
    call = Call()
    for tensor in call.views.values():
        tensor.device = Device(CUDA, 0)
    workspace = np.zeros(1 << 20, np.uint8)
    call.context = context(workspace=workspace.ctypes.data, workspace_bytes=workspace.nbytes)
    for run_pass in (call.forward, call.backward):
        assert run_pass(library) == ECUDA
        version = f"{cuda['runtime'] // 1000}.{cuda['runtime'] % 1000 // 10}"
        assert f"CUDA {version}" in message(library)
        assert "no NVIDIA driver was found" in message(library)
