"""Settings of the whole suite, and the ``backend`` fixture that runs a test on each implementation of the ops."""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# Before torch starts its threads: threads that spin while they wait make a busy machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parents[1]
FULL = os.environ.get("STURDY_TEST_FULL", "") not in ("", "0")

_COMMON = {
    "deadline": None,
    "print_blob": True,
    # The backend fixture sets nothing up that an example could spoil.
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("ci", max_examples=30, phases=[p for p in Phase if p is not Phase.explain], **_COMMON)
settings.register_profile("full", max_examples=1000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu: on the CPU kernels")
    config.addinivalue_line("markers", "simt: on the CUDA kernels, run by the CPU")
    config.addinivalue_line("markers", "cuda: on the CUDA kernels, run by a GPU")
    config.addinivalue_line("markers", "race: on the CUDA kernels, under the race checker")
    config.addinivalue_line("markers", "channel_range: with range_dims='channel'")
    config.addinivalue_line("markers", "full: takes much memory or time; only with STURDY_TEST_FULL=1")
    # A seed that is known beforehand, so that a log always holds what repeats its run.
    if getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


def pytest_report_header(config: pytest.Config) -> str:
    return f"hypothesis: --hypothesis-seed={config.option.hypothesis_seed} repeats this run"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not FULL:
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="only with STURDY_TEST_FULL=1 (make test-full)"))


@pytest.fixture(scope="session", autouse=True)
def torch_threads() -> None:
    """Two threads everywhere: enough to split work, few enough for any machine."""
    try:
        import torch
    except ImportError:  # the tests of other bindings do without
        return
    torch.set_num_threads(2)


# ---- backends --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops: where its tensors live, and the namespace its ops have in torch."""

    name: str
    device: str
    namespace: str

    def op(self, name: str) -> Callable:
        import torch

        return getattr(getattr(torch.ops, self.namespace), name).default


@dataclass(frozen=True)
class RaceReport:
    """What ran under the race checker, and what it found, since the library was loaded."""

    library: ctypes.CDLL

    def count(self) -> int:
        return int(self.library.sturdy_simt_race_count())

    def launches(self) -> int:
        counts = (ctypes.c_uint64 * 6)()
        self.library.sturdy_simt_stats(counts)
        return int(counts[0])

    def text(self) -> str:
        self.library.sturdy_simt_race_report.restype = ctypes.c_char_p
        return self.library.sturdy_simt_race_report().decode()


def library_path(name: str) -> Path:
    return Path(os.environ.get("STURDY_SIMT_DIR") or ROOT / "build" / "simt") / f"lib{name}.so"


@cache
def _load_test_library(name: str) -> None:
    import torch

    from sturdy import _registration, functional  # noqa: F401  (the op families must be known before they are registered)

    torch.ops.load_library(str(library_path(name)))
    _registration.register(name)


def _need_test_library(name: str) -> None:
    if os.environ.get("STURDY_SKIP_SIMT", "") not in ("", "0"):
        pytest.skip("STURDY_SKIP_SIMT is set")
    if not library_path(name).exists():
        pytest.fail(f"{library_path(name)} is missing: build it with `make simt`, or set STURDY_SKIP_SIMT=1", False)
    _load_test_library(name)


def _need_gpu() -> None:
    import torch

    import sturdy

    if not torch.cuda.is_available():
        pytest.skip("cuda: no NVIDIA GPU, or a torch without CUDA")
    if sturdy.build_info()["cuda"] is None:
        pytest.skip("cuda: this build of sturdy has no CUDA kernels")


@pytest.fixture(
    params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("cpu", "simt", "cuda")],
)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The CPU kernels, the CUDA kernels on the SIMT executor, and the CUDA kernels on a GPU."""
    if request.param == "simt":
        _need_test_library("sturdy_simt")
        from sturdy import _registration

        with _registration.use_namespace("sturdy_simt"):
            yield Backend("simt", "cpu", "sturdy_simt")
    elif request.param == "cuda":
        _need_gpu()
        yield Backend("cuda", "cuda", "sturdy")
    else:
        yield Backend("cpu", "cpu", "sturdy")


@pytest.fixture(params=[pytest.param("race", marks=pytest.mark.race)])
def race_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The CUDA kernels under the race checker; the test fails if it found anything."""
    _need_test_library("sturdy_race")
    from sturdy import _registration

    report = RaceReport(ctypes.CDLL(str(library_path("sturdy_race"))))
    before, launches = report.count(), report.launches()
    with _registration.use_namespace("sturdy_race"):
        yield Backend("race", "cpu", "sturdy_race")
    assert report.launches() > launches, "no kernel ran, so nothing was checked"
    found = report.count() - before
    assert found == 0, f"{found} race(s):\n{report.text()}"
