"""Drives CMake, which describes the build.

FORCE_CUDA=1 stops without nvcc, FORCE_CUDA=0 leaves CUDA out; MAX_JOBS bounds the compile jobs;
STURDY_CUDA_ARCHS="80-real;90a-real" names architectures; STURDY_WITH_TORCH=OFF and
STURDY_WITH_NUMPY=OFF leave a binding out.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_OPTIONS = ("STURDY_WITH_", "STURDY_CUDA_ARCHS", "STURDY_SANITIZE", "STURDY_WERROR")


def default_jobs() -> int:
    """One job a core, and no more than memory serves: nvcc takes about 1.5 GiB."""
    cores = os.cpu_count() or 1
    try:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return cores
    return max(1, min(cores, available // (3 << 29)))


def cmake_program() -> str:
    found = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    if found is None:
        sys.exit("sturdy: cmake is missing; install it with `pip install cmake ninja`")
    return found


class CMakeBuild(build_ext):
    def run(self) -> None:
        package = ROOT / "python" / "sturdy" if self.editable_mode or self.inplace else Path(self.build_lib) / "sturdy"
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_INSTALL_PREFIX": package.resolve(),
            "CMAKE_INSTALL_LIBDIR": "lib",
            "CMAKE_INSTALL_INCLUDEDIR": "include",
            "Python_EXECUTABLE": sys.executable,
            "STURDY_WHEEL": "ON",
        }
        cuda = {"1": "ON", "0": "OFF"}.get(os.environ.get("FORCE_CUDA", ""), "AUTO")
        options["STURDY_WITH_CUDA"] = cuda
        options.update({name: value for name, value in os.environ.items() if name.startswith(BUILD_OPTIONS)})
        cmake = cmake_program()
        arguments = [f"-D{name}={value}" for name, value in options.items()]
        generator = ["-G", "Ninja"] if shutil.which("ninja", path=os.pathsep.join(self.search_path())) else []
        environment = {**os.environ, "PATH": os.pathsep.join(self.search_path())}
        jobs = os.environ.get("MAX_JOBS") or str(default_jobs())
        for command in (
            [cmake, "-S", str(ROOT), "-B", str(build), *generator, *arguments],
            [cmake, "--build", str(build), "--parallel", jobs],
            [cmake, "--install", str(build)],
        ):
            if subprocess.run(command, env=environment).returncode != 0:
                sys.exit(f"sturdy: the build failed in `{' '.join(command[:3])} ...`; the reason stands above")

    @staticmethod
    def search_path() -> list[str]:
        """The interpreter's own folder first: pip puts cmake and ninja there."""
        return [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]

    # What CMake installed is not an extension module that setuptools could find by its name.
    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


# The one name makes the wheel a binary one; CMake knows what to build.
setup(ext_modules=[Extension("sturdy._libraries", sources=[])], cmdclass={"build_ext": CMakeBuild})
