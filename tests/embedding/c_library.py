"""The C library seen through ctypes: its structs, its functions, and a call of each kind that succeeds."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint8, c_uint16, c_uint32, c_uint64
from ctypes import c_void_p as pointer
from typing import Any

import numpy as np

from sturdy._load import library_path

OK, EINVAL, ETYPE, EUNSUPPORTED, ENOMEM, ECUDA, EINTERNAL = range(7)
CPU, CUDA = 1, 2
CHANNEL_RANGE = 1  # a flag of the options
CODES = {
    "float16": (2, 16),
    "float32": (2, 32),
    "float64": (2, 64),
    "int64": (0, 64),
    "int32": (0, 32),
    "uint8": (1, 8),
    "bool": (6, 8),
}


class Device(ctypes.Structure):
    _fields_ = [("type", c_int32), ("id", c_int32)]


class DType(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", pointer),
        ("device", Device),
        ("ndim", c_int32),
        ("dtype", DType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("stride", c_int64 * 2),
        ("padding", c_int64 * 4),
        ("dilation", c_int64 * 2),
        ("groups", c_int64),
        ("pool", c_int64 * 2),
        ("strength", c_double),
    ]


class WaveAddOptions(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("low", c_double), ("high", c_double)]


class SpectralFilterOptions(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("low", c_double), ("high", c_double)]


class AmplitudeMixOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("strength", c_double),
        ("window", c_int64 * 2),
        ("low", c_double),
        ("high", c_double),
    ]


class SpectrumAccumulateOptions(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("groups", c_int64), ("power", c_int64)]


class Filter2dOptions(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("low", c_double), ("high", c_double)]


class SmoothColorOptions(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("low", c_double), ("high", c_double)]


class SineWarpOptions(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32)]


class CastAffinityOptions(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("tau_g", c_double)]


class CastClusterOptions(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("method", c_int32), ("cluster_size", c_int64)]


class CastAttentionOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("tau", c_double),
        ("tau_q", c_double),
        ("tau_k", c_double),
        ("dropout", c_double),
    ]


BODY = ctypes.CFUNCTYPE(None, pointer, c_int64, c_int64)
PARALLEL_FOR = ctypes.CFUNCTYPE(None, pointer, c_int64, c_int64, BODY, pointer)


class Context(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("pool", pointer),
        ("parallel_for", PARALLEL_FOR),
        ("stream", pointer),
        ("workspace", pointer),
        ("workspace_bytes", c_size_t),
    ]


TENSOR, OPTIONS, CONTEXT = POINTER(Tensor), POINTER(Options), POINTER(Context)
WAVE_ADD_OPTIONS = POINTER(WaveAddOptions)
FILTER_OPTIONS = POINTER(SpectralFilterOptions)
MIX_OPTIONS = POINTER(AmplitudeMixOptions)
SUM_OPTIONS = POINTER(SpectrumAccumulateOptions)
FILTER2D_OPTIONS = POINTER(Filter2dOptions)
SMOOTH_COLOR_OPTIONS = POINTER(SmoothColorOptions)
SINE_WARP_OPTIONS = POINTER(SineWarpOptions)
AFFINITY_OPTIONS = POINTER(CastAffinityOptions)
CLUSTER_OPTIONS = POINTER(CastClusterOptions)
ATTENTION_OPTIONS = POINTER(CastAttentionOptions)
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "sturdy_abi_version": (c_uint32, []),
    "sturdy_version": (c_char_p, []),
    "sturdy_last_error": (c_char_p, []),
    "sturdy_build_info": (c_char_p, []),
    "sturdy_set_num_threads": (c_int32, [c_int32]),
    "sturdy_get_num_threads": (c_int32, []),
    "sturdy_push_pull_conv2d_infer": (c_int32, [OPTIONS, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR]),
    "sturdy_push_pull_conv2d_workspace": (c_size_t, [OPTIONS, TENSOR, TENSOR]),
    "sturdy_push_pull_conv2d": (c_int32, [CONTEXT, OPTIONS, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR]),
    "sturdy_push_pull_conv2d_backward_workspace": (c_size_t, [OPTIONS, TENSOR, TENSOR]),
    "sturdy_push_pull_conv2d_backward": (
        c_int32,
        [CONTEXT, OPTIONS, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR],
    ),
    "sturdy_wave_add_infer": (c_int32, [WAVE_ADD_OPTIONS, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR]),
    "sturdy_wave_add": (c_int32, [CONTEXT, WAVE_ADD_OPTIONS, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR]),
    "sturdy_wave_add_backward": (
        c_int32,
        [CONTEXT, WAVE_ADD_OPTIONS, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR, TENSOR],
    ),
    "sturdy_spectral_filter_infer": (c_int32, [FILTER_OPTIONS, TENSOR, TENSOR, TENSOR, TENSOR]),
    "sturdy_spectral_filter_workspace": (c_size_t, [FILTER_OPTIONS, TENSOR, TENSOR, TENSOR]),
    "sturdy_spectral_filter_backward_workspace": (c_size_t, [FILTER_OPTIONS, TENSOR, TENSOR, TENSOR, c_int32]),
    "sturdy_spectral_filter": (c_int32, [CONTEXT, FILTER_OPTIONS, TENSOR, TENSOR, TENSOR, TENSOR]),
    "sturdy_spectral_filter_backward": (c_int32, [CONTEXT, FILTER_OPTIONS, *[TENSOR] * 6]),
    "sturdy_amplitude_mix_infer": (c_int32, [MIX_OPTIONS, *[TENSOR] * 6]),
    "sturdy_amplitude_mix_workspace": (c_size_t, [MIX_OPTIONS, *[TENSOR] * 5]),
    "sturdy_amplitude_mix": (c_int32, [CONTEXT, MIX_OPTIONS, *[TENSOR] * 6]),
    "sturdy_spectrum_accumulate_infer": (c_int32, [SUM_OPTIONS, TENSOR, TENSOR, TENSOR]),
    "sturdy_spectrum_accumulate_workspace": (c_size_t, [SUM_OPTIONS, TENSOR, TENSOR]),
    "sturdy_spectrum_accumulate": (c_int32, [CONTEXT, SUM_OPTIONS, TENSOR, TENSOR, TENSOR]),
    "sturdy_filter2d_infer": (c_int32, [FILTER2D_OPTIONS, *[TENSOR] * 3]),
    "sturdy_filter2d": (c_int32, [CONTEXT, FILTER2D_OPTIONS, *[TENSOR] * 3]),
    "sturdy_filter2d_backward": (c_int32, [CONTEXT, FILTER2D_OPTIONS, *[TENSOR] * 5]),
    "sturdy_smooth_color_infer": (c_int32, [SMOOTH_COLOR_OPTIONS, *[TENSOR] * 4]),
    "sturdy_smooth_color": (c_int32, [CONTEXT, SMOOTH_COLOR_OPTIONS, *[TENSOR] * 4]),
    "sturdy_smooth_color_backward": (c_int32, [CONTEXT, SMOOTH_COLOR_OPTIONS, *[TENSOR] * 6]),
    "sturdy_sine_warp_infer": (c_int32, [SINE_WARP_OPTIONS, *[TENSOR] * 3]),
    "sturdy_sine_warp": (c_int32, [CONTEXT, SINE_WARP_OPTIONS, *[TENSOR] * 3]),
    "sturdy_cast_affinity_infer": (c_int32, [AFFINITY_OPTIONS, *[TENSOR] * 6]),
    "sturdy_cast_affinity_workspace": (c_size_t, [AFFINITY_OPTIONS, *[TENSOR] * 5]),
    "sturdy_cast_affinity": (c_int32, [CONTEXT, AFFINITY_OPTIONS, *[TENSOR] * 6]),
    "sturdy_cast_cluster_infer": (c_int32, [CLUSTER_OPTIONS, *[TENSOR] * 3]),
    "sturdy_cast_cluster_workspace": (c_size_t, [CLUSTER_OPTIONS, *[TENSOR] * 2]),
    "sturdy_cast_cluster": (c_int32, [CONTEXT, CLUSTER_OPTIONS, *[TENSOR] * 5]),
    "sturdy_cast_attention_infer": (c_int32, [ATTENTION_OPTIONS, *[TENSOR] * 9]),
    "sturdy_cast_attention_workspace": (c_size_t, [ATTENTION_OPTIONS, *[TENSOR] * 3, c_int32]),
    "sturdy_cast_attention": (c_int32, [CONTEXT, ATTENTION_OPTIONS, *[TENSOR] * 14]),
    "sturdy_cast_attention_backward_workspace": (c_size_t, [ATTENTION_OPTIONS, *[TENSOR] * 3]),
    "sturdy_cast_attention_backward": (c_int32, [CONTEXT, ATTENTION_OPTIONS, *[TENSOR] * 20]),
}


def load() -> ctypes.CDLL:
    """The built library, with the types of all its functions."""
    found = ctypes.CDLL(str(library_path("sturdy_core")))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def view(array: np.ndarray | None) -> Tensor | None:
    """A NumPy array as the C library sees it; the array must outlive the view."""
    if array is None:
        return None
    rank = array.ndim
    return Tensor(
        data=array.ctypes.data,
        device=Device(CPU, 0),
        ndim=rank,
        dtype=DType(*CODES[array.dtype.name], 1),
        shape=(c_int64 * max(rank, 1))(*array.shape),
        strides=(c_int64 * max(rank, 1))(*(stride // array.itemsize for stride in array.strides)),
        byte_offset=0,
    )


def options(**changes: Any) -> Options:
    """The defaults, with some of them changed; tuples become arrays."""
    chosen = Options(ctypes.sizeof(Options), 0, (1, 1), (0, 0, 0, 0), (1, 1), 1, (1, 1), 1.0)
    for name, value in changes.items():
        setattr(chosen, name, value)
    return chosen


def context(**changes: Any) -> Context:
    chosen = Context(struct_size=ctypes.sizeof(Context))
    for name, value in changes.items():
        setattr(chosen, name, value)
    return chosen


class Call:
    """The arguments of one forward and one backward call that succeed; a test spoils some of them."""

    def __init__(self, dtype: str = "float32") -> None:
        rng = np.random.default_rng(0)
        self.arrays = {
            "input": rng.standard_normal((2, 4, 9, 11)).astype(dtype),
            "weight": rng.standard_normal((6, 4, 3, 3)).astype(dtype),
            "inhibition": rng.uniform(0.2, 1.5, 6).astype(dtype),
            "bias": rng.standard_normal(6).astype(dtype),
            "out": np.full((2, 6, 7, 9), np.nan, dtype),
            "push": np.full((2, 6, 7, 9), np.nan, dtype),
            "grad_out": rng.standard_normal((2, 6, 7, 9)).astype(dtype),
            "grad_input": np.full((2, 4, 9, 11), np.nan, dtype),
            "grad_weight": np.full((6, 4, 3, 3), np.nan, dtype),
            "grad_inhibition": np.full(6, np.nan, "float32"),
            "grad_bias": np.full(6, np.nan, "float32"),
        }
        self.views: dict[str, Tensor | None] = {name: view(array) for name, array in self.arrays.items()}
        self.options: Options | None = options()
        self.context: Context | None = None

    def _pass(self, *names: str) -> list[Any]:
        return [None if self.views[name] is None else byref(self.views[name]) for name in names]

    def _options(self) -> Any:
        return None if self.options is None else byref(self.options)

    def infer(self, library: ctypes.CDLL) -> int:
        return library.sturdy_push_pull_conv2d_infer(
            self._options(), *self._pass("input", "weight", "inhibition", "bias", "out")
        )

    def forward(self, library: ctypes.CDLL) -> int:
        where = None if self.context is None else byref(self.context)
        tensors = self._pass("input", "weight", "inhibition", "bias", "out", "push")
        return library.sturdy_push_pull_conv2d(where, self._options(), *tensors)

    def backward(self, library: ctypes.CDLL) -> int:
        where = None if self.context is None else byref(self.context)
        inputs = self._pass("grad_out", "input", "weight", "inhibition", "push")
        outputs = self._pass("grad_input", "grad_weight", "grad_inhibition", "grad_bias")
        return library.sturdy_push_pull_conv2d_backward(where, self._options(), *inputs, *outputs)


def message(library: ctypes.CDLL) -> str:
    return library.sturdy_last_error().decode()


# ---- what it is ------------------------------------------------------------------------------------------------------
