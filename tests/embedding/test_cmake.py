"""Programs in C and C++ that use the CMake package: installed, moved, out of the wheel, inside another project."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from embedding_support import ROOT, build, configure, program, python_environment, run, run_python

EXAMPLES = ROOT / "examples" / "cpp"

# The core alone, for the CPU, without optimisation: what is tested here is how it is found and linked.
CORE_ONLY = ("STURDY_WITH_CUDA=OFF", "CMAKE_INSTALL_LIBDIR=lib")
WARNINGS = "-Wall -Wextra -Wpedantic -Werror"
# Every user of the package sees these flags, so they must add nothing.
STRICT = (f"CMAKE_CXX_FLAGS={WARNINGS}", f"CMAKE_C_FLAGS=-std=c99 {WARNINGS}", "CMAKE_C_EXTENSIONS=OFF")

INSIDE = """
cmake_minimum_required(VERSION 3.24)
project(inside LANGUAGES CXX)
add_subdirectory({root} sturdy)
add_executable(inhibit {root}/examples/cpp/inhibit.cpp)
target_compile_features(inhibit PRIVATE cxx_std_17)
target_link_libraries(inhibit PRIVATE sturdy::core)
get_target_property(options sturdy_core INTERFACE_COMPILE_OPTIONS)
get_target_property(definitions sturdy_core INTERFACE_COMPILE_DEFINITIONS)
message(STATUS "passed on: ${{options}} ${{definitions}}")
message(STATUS "standard: '${{CMAKE_CXX_STANDARD}}'")
message(STATUS "torch: ${{STURDY_WITH_TORCH}}, numpy: ${{STURDY_WITH_NUMPY}}")
"""

ONLY_C = """
cmake_minimum_required(VERSION 3.24)
project(only_c LANGUAGES C)
find_package(sturdy {version} CONFIG REQUIRED COMPONENTS {components})
add_executable(smallest {root}/examples/cpp/smallest.c)
target_link_libraries(smallest PRIVATE sturdy::core)
"""


def project(folder: Path, text: str, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "CMakeLists.txt").write_text(text.format(root=ROOT, **values))
    return folder


def build_examples(prefix: Path, folder: Path) -> None:
    """Configure, build and run both examples with the package under ``prefix``."""
    configure(EXAMPLES, folder, f"CMAKE_PREFIX_PATH={prefix}", *STRICT)
    build(folder)
    check_inhibit(folder / "inhibit")
    check_smallest(folder / "smallest")


def check_inhibit(path: Path) -> None:
    said = run(path).stdout
    found = re.findall(r"mean response ([\d.]+), after inhibition ([\d.]+)", said)
    assert len(found) == 2, said
    for push, out in found:
        assert 0 < float(out) < float(push)  # a positive strength can only take away
    assert "push_pull_conv2d: input channels must be divisible by groups, got 4" in said


def check_smallest(path: Path) -> None:
    # By hand: both places see the step, p = 3; m = 0, so q = -3 and nothing is taken away.
    assert run(path).stdout.split() == ["(1,", "1,", "1,", "2):", "3", "3"]


@pytest.fixture(scope="session")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that contains ours, built; kept between runs in build/, since the kernels take their time."""
    source = project(ROOT / "build" / "embedding" / "source", INSIDE)
    folder = ROOT / "build" / "embedding" / "shared"
    configured = configure(source, folder, *CORE_ONLY, "BUILD_SHARED_LIBS=ON", build_type="Debug")
    (folder / "configured.txt").write_text(configured.stdout)
    build(folder)
    return folder


@pytest.fixture(scope="session")
def prefix(inside: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed copy, moved from where it was installed."""
    first = tmp_path_factory.mktemp("installed") / "first"
    run(program("cmake"), "--install", inside, "--prefix", first)
    second = first.with_name("moved")
    first.rename(second)
    return second


def test_inside_another_project(inside: Path) -> None:
    check_inhibit(inside / "inhibit")
    said = (inside / "configured.txt").read_text()
    assert re.search(r"passed on: +(options-NOTFOUND|definitions-NOTFOUND| )+\n", said), said
    assert "standard: ''" in said
    assert "torch: OFF, numpy: OFF" in said


def test_installed_and_moved(prefix: Path, tmp_path: Path) -> None:
    build_examples(prefix, tmp_path / "build")
    names = {path.name for path in (prefix / "lib").iterdir()}
    assert {"libsturdy_core.so", "libsturdy_core.so.1"} <= names
    needed = run("readelf", "-d", tmp_path / "build" / "smallest").stdout
    assert "libsturdy_core.so.1" in needed
    text = "".join(path.read_text() for path in (prefix / "share" / "cmake" / "sturdy").iterdir())
    assert str(ROOT) not in text and "/first" not in text


def test_package_of_python(tmp_path: Path) -> None:
    found = run_python("import sys; sys.argv = ['sturdy', '--cmake-prefix']; from sturdy.__main__ import main; main()")
    build_examples(Path(found.stdout.strip()), tmp_path / "build")


def test_include_folder_is_enough_for_the_headers(tmp_path: Path) -> None:
    folder = run(sys.executable, "-m", "sturdy", "--include", cwd=tmp_path, env=python_environment()).stdout.strip()
    for name in ("sturdy.h", "cast.h", "fourier.h", "pushpull.h"):
        (tmp_path / "one.c").write_text(f'#include "sturdy/{name}"\nint main(void) {{ return 0; }}\n')
        flags = ["-std=c99", *WARNINGS.split(), "-fsyntax-only"]
        run(shutil.which("gcc") or "cc", *flags, f"-I{folder}", tmp_path / "one.c")
    for name in ("sturdy.hpp", "cast.hpp", "fourier.hpp", "pushpull.hpp"):
        # Included twice and from two files: no definition may be repeated.
        for unit in ("one", "two"):
            (tmp_path / f"{unit}.cpp").write_text(f'#include "sturdy/{name}"\n#include "sturdy/{name}"\n')
        (tmp_path / "main.cpp").write_text("int main() {}\n")
        units = [tmp_path / f"{unit}.cpp" for unit in ("one", "two", "main")]
        flags = ["-std=c++17", *WARNINGS.split(), "-Wl,--unresolved-symbols=ignore-all"]
        run(shutil.which("g++") or "c++", *flags, f"-I{folder}", *units, "-o", tmp_path / "main")


def test_c_alone_needs_no_other_language(prefix: Path, tmp_path: Path) -> None:
    source = project(tmp_path / "source", ONLY_C, version="0.1", components="core")
    configure(source, tmp_path / "build", f"CMAKE_PREFIX_PATH={prefix}")
    build(tmp_path / "build")
    check_smallest(tmp_path / "build" / "smallest")


@pytest.mark.parametrize(
    ("version", "components", "said"),
    [
        ("0.1", "core nonsense", "component nonsense was not built"),
        ("0.1", "core torch", "component torch was not built"),  # of a build without it
        ("0.2", "core", "version: 0.1.0"),
        ("1.0", "core", "version: 0.1.0"),
    ],
)
def test_what_is_not_there(prefix: Path, tmp_path: Path, version: str, components: str, said: str) -> None:
    source = project(tmp_path / "source", ONLY_C, version=version, components=components)
    done = configure(source, tmp_path / "build", f"CMAKE_PREFIX_PATH={prefix}", check=False)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize("program_name", ["pybind11", "python"])
def test_numpy_module_without_its_needs(tmp_path: Path, program_name: str) -> None:
    """A configure error that names the way out, never a silent omission."""
    if program_name == "pybind11":
        # A pybind11 that cannot be run stands before the real one.
        hidden = tmp_path / "hidden" / "pybind11"
        hidden.mkdir(parents=True)
        (hidden / "__init__.py").write_text("raise ImportError\n")
        environment = {**python_environment(), "PYTHONPATH": str(hidden.parent)}
        definitions, said = [], "pip install pybind11"
    else:
        environment = python_environment()
        definitions, said = ["Python_INCLUDE_DIR=/nonexistent"], "headers of Python"
    done = run(
        *(program("cmake"), "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja"),
        *(f"-DCMAKE_MAKE_PROGRAM={program('ninja')}", f"-DPython_EXECUTABLE={sys.executable}"),
        *("-DSTURDY_WITH_TORCH=OFF", "-DSTURDY_WITH_CUDA=OFF", *(f"-D{text}" for text in definitions)),
        env=environment,
        check=False,
    )
    assert done.returncode != 0
    words = " ".join(done.stderr.split())
    assert said in words and "-DSTURDY_WITH_NUMPY=OFF" in words, done.stderr


@pytest.mark.full
def test_static(tmp_path: Path) -> None:
    folder = ROOT / "build" / "embedding" / "static"
    definitions = ("STURDY_WITH_TORCH=OFF", "STURDY_WITH_NUMPY=OFF", "BUILD_SHARED_LIBS=OFF")
    configure(ROOT, folder, *CORE_ONLY, *definitions, build_type="Debug")
    build(folder)
    run(program("cmake"), "--install", folder, "--prefix", tmp_path / "prefix")
    assert (tmp_path / "prefix" / "lib" / "libsturdy_core.a").exists()
    build_examples(tmp_path / "prefix", tmp_path / "build")
    source = project(tmp_path / "source", ONLY_C, version="0.1", components="core")
    done = configure(source, tmp_path / "only_c", f"CMAKE_PREFIX_PATH={tmp_path / 'prefix'}", check=False)
    assert done.returncode != 0
    assert "enable_language(CXX) is required" in " ".join(done.stderr.split())
