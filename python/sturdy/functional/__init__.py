"""The ops as functions on PyTorch tensors."""

from sturdy._load import load_library

load_library()

from sturdy import _flops as _flops  # noqa: E402  (the ops must be loaded first)
from sturdy import _registration  # noqa: E402
from sturdy.functional.amplitude import amplitude_mix  # noqa: E402
from sturdy.functional.cast import (  # noqa: E402
    CASTClusters,
    cast_affinity,
    cast_attention,
    cast_cluster,
)
from sturdy.functional.prime import filter2d, sine_warp, smooth_color  # noqa: E402
from sturdy.functional.pushpull import push_pull_conv2d  # noqa: E402
from sturdy.functional.pushpull2020 import push_pull_2020_conv2d  # noqa: E402
from sturdy.functional.spectra import spectrum_accumulate  # noqa: E402
from sturdy.functional.spectral import spectral_filter  # noqa: E402
from sturdy.functional.surround import surround_kernel, surround_suppression_conv2d  # noqa: E402
from sturdy.functional.waves import spectrum_waves, wave_add, wave_norm  # noqa: E402

_registration.register("sturdy")

__all__ = [
    "CASTClusters",
    "amplitude_mix",
    "cast_affinity",
    "cast_attention",
    "cast_cluster",
    "filter2d",
    "push_pull_2020_conv2d",
    "push_pull_conv2d",
    "sine_warp",
    "smooth_color",
    "spectral_filter",
    "spectrum_accumulate",
    "spectrum_waves",
    "surround_kernel",
    "surround_suppression_conv2d",
    "wave_add",
    "wave_norm",
]
