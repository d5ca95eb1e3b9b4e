"""The ops on NumPy arrays, and on tensors in CPU memory of any library that speaks DLPack. Needs no PyTorch.

Nothing is cast and nothing is copied: an op reads its inputs where they lie, whatever their strides, and refuses what
it cannot read. While it computes, other Python threads run; :func:`sturdy.set_num_threads` says how many it may use.

Every function raises:
    ShapeError: shapes disagree, a size or a memory layout is wrong; a ``ValueError`` and a ``RuntimeError``.
    ValueError: an option is out of range.
    TypeError: not an array, dtypes that disagree or are unsupported (integers, lists).
    BufferError: memory that is not on the CPU, or an output that must not be written: a read-only array, or a tensor of
        a library that does not say that it may be (JAX). PyTorch tensors that require gradients, too: detach them.
    NotImplementedError: a size that there is no kernel for.
    MemoryError, RuntimeError: no memory for scratch space; a defect of the library.
"""

from __future__ import annotations

import importlib.util

from sturdy._load import core

core()  # says in plain words if it is missing or of another version
if importlib.util.find_spec("sturdy._numpy") is None:
    raise ImportError(
        "sturdy was built without its NumPy module for this Python: run `pip install .` with STURDY_WITH_NUMPY=ON"
    )
from sturdy.numpy._arguments import Array, SupportsDLPack  # noqa: E402  (the two checks come first)
from sturdy.numpy.amplitude import amplitude_mix  # noqa: E402
from sturdy.numpy.cast import (  # noqa: E402
    CASTClusters,
    CASTGradients,
    CASTKept,
    cast_affinity,
    cast_attention,
    cast_attention_backward,
    cast_cluster,
)
from sturdy.numpy.prime import (  # noqa: E402
    Filter2dGradients,
    SmoothColorGradients,
    filter2d,
    filter2d_backward,
    sine_warp,
    smooth_color,
    smooth_color_backward,
)
from sturdy.numpy.pushpull import (  # noqa: E402
    PushPullConv2dGradients,
    push_pull_conv2d,
    push_pull_conv2d_backward,
)
from sturdy.numpy.spectra import spectrum_accumulate  # noqa: E402
from sturdy.numpy.spectral import SpectralFilterGradients, spectral_filter, spectral_filter_backward  # noqa: E402
from sturdy.numpy.waves import WaveAddGradients, wave_add, wave_add_backward  # noqa: E402

__all__ = [
    "Array",
    "CASTClusters",
    "CASTGradients",
    "CASTKept",
    "Filter2dGradients",
    "PushPullConv2dGradients",
    "SmoothColorGradients",
    "SpectralFilterGradients",
    "SupportsDLPack",
    "WaveAddGradients",
    "amplitude_mix",
    "cast_affinity",
    "cast_attention",
    "cast_attention_backward",
    "cast_cluster",
    "filter2d",
    "filter2d_backward",
    "push_pull_conv2d",
    "push_pull_conv2d_backward",
    "sine_warp",
    "smooth_color",
    "smooth_color_backward",
    "spectral_filter",
    "spectral_filter_backward",
    "spectrum_accumulate",
    "wave_add",
    "wave_add_backward",
]
