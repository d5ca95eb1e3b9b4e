"""What is installed, what an import loads, what a broken installation says, and what goes into wheel and sdist."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from embedding_support import ROOT, python_environment, run, run_python

import sturdy
from sturdy._load import library_path, package_dir

FRAMEWORKS = ("torch", "numpy", "jax", "onnx", "onnxruntime")


@pytest.mark.parametrize(
    ("statement", "may_load"),
    [
        ("import sturdy; sturdy.ShapeError, sturdy.__version__, dir(sturdy)", set()),
        ("import sturdy; sturdy.build_info(); sturdy.set_num_threads(2)", set()),
        ("import sturdy.numpy", {"numpy"}),
        ("import sturdy; sturdy.numpy.push_pull_conv2d", {"numpy"}),
    ],
)
def test_imports_are_light(statement: str, may_load: set[str]) -> None:
    done = run_python(f"import sys\n{statement}\nprint(*(name for name in {FRAMEWORKS} if name in sys.modules))")
    assert set(done.stdout.split()) == may_load


def test_build_info() -> None:
    info = sturdy.build_info()
    assert info["version"] == sturdy.__version__
    assert info["bindings"]["numpy"] is True
    assert info["cpu_kernels_used"] in info["cpu_kernels"]
    assert info["cpu_bfloat16"] in ("none", "avx512_bf16", "amx")
    assert re.fullmatch(r"\S+ [\d.]+", info["compiler"])
    assert info["cuda"] is None or {"toolkit", "architectures", "runtime", "least_driver", "driver"} <= set(
        info["cuda"]
    )


@pytest.mark.parametrize("isa", ["portable", "avx512"])
def test_build_info_follows_the_chosen_instructions(isa: str) -> None:
    done = run_python(
        "import sturdy; print(sturdy.build_info()['cpu_bfloat16'])", env=python_environment() | {"STURDY_ISA": isa}
    )
    assert done.stdout.split() == ["none"]


def test_paths_for_build_systems(tmp_path: Path) -> None:
    def say(option: str) -> Path:
        done = run(sys.executable, "-m", "sturdy", option, env=python_environment(), cwd=tmp_path)
        return Path(done.stdout.rstrip("\n"))

    assert (say("--include") / "sturdy" / "sturdy.h").is_file()
    assert (say("--cmake-prefix") / "share" / "cmake" / "sturdy" / "sturdy-config.cmake").is_file()


# ---- broken installations --------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the installed package, to be spoiled."""
    ignored = shutil.ignore_patterns("recipes", "share", "include", "__pycache__")
    shutil.copytree(package_dir(), tmp_path / "copy" / "sturdy", ignore=ignored)
    return tmp_path / "copy"


def _say_import_error(statement: str, package_parent: Path) -> str:
    code = f"""
try:
    {statement}
except ImportError as error:
    print(error)
else:
    raise SystemExit("no ImportError")
"""
    return run_python(code, env=python_environment(package_parent)).stdout


def test_no_library(copy: Path) -> None:
    (copy / "sturdy" / "lib" / "libsturdy_core.so").unlink()
    for statement in ("import sturdy; sturdy.build_info()", "import sturdy.numpy"):
        said = _say_import_error(statement, copy)
        assert "sturdy was not built" in said and "libsturdy_core.so is missing" in said


def test_no_numpy_module(copy: Path) -> None:
    for path in (copy / "sturdy").glob("_numpy*.so"):
        path.unlink()
    assert "built without its NumPy module" in _say_import_error("import sturdy.numpy", copy)


def test_library_of_another_version(copy: Path) -> None:
    """A library with the same functions that says it has another ABI."""
    symbols = run("nm", "-D", "--defined-only", library_path("sturdy_core")).stdout.split("\n")
    names = [line.split()[-1] for line in symbols if line]
    source = copy / "other.c"
    source.write_text("\n".join(f"int {name}(void) {{ return 99; }}" for name in names))
    target = copy / "sturdy" / "lib" / "libsturdy_core.so"
    run("gcc", "-shared", "-fPIC", source, "-Wl,-soname,libsturdy_core.so", "-o", target)
    said = _say_import_error("import sturdy; sturdy.build_info()", copy)
    assert "has ABI 99, this Python package needs 1" in said
    said = _say_import_error("import sturdy._numpy", copy)
    assert "was built for ABI 1 of libsturdy_core, found 99" in said


def test_second_copy_of_the_op_library_is_refused(copy: Path) -> None:
    """Loading it would end the process: torch throws where nobody can catch."""
    pytest.importorskip("torch")
    if not library_path("sturdy_torch").exists():
        pytest.skip("this build has no torch binding")
    other = copy / "sturdy" / "lib" / "libsturdy_torch.so"
    code = f"""
import torch
torch.ops.load_library({str(other)!r})
try:
    import sturdy.functional
except ImportError as error:
    print(error)
else:
    raise SystemExit("no ImportError")
"""
    said = run_python(code).stdout
    assert "the sturdy ops are already loaded from" in said
    assert str(other) in said and str(library_path("sturdy_torch")) in said


# ---- distributions ---------------------------------------------------------------------------------------------------


def _make_sdist(source: Path, folder: Path) -> Path:
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    name = run(sys.executable, "-W", "ignore", "-c", code, cwd=source).stdout.split()[-1]
    return folder / name


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, made from a copy of the sources since setuptools leaves files behind."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    source.mkdir()
    for name in ("cmake", "csrc", "python", "tests", "examples", "docs", "benchmarks"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    return _make_sdist(source, folder)


def _names(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def test_sdist_has_every_source(sdist: Path) -> None:
    names = _names(sdist)
    for folder in ("cmake", "csrc"):
        wanted = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}
        wanted = {name for name in wanted if "__pycache__" not in name}
        assert wanted <= names, sorted(wanted - names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "python" / "sturdy").rglob("*.py")}
    assert modules <= names, sorted(modules - names)
    wanted = {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", "python/sturdy/py.typed"}
    assert wanted <= names, sorted(wanted - names)


def test_sdist_has_what_cmake_names(sdist: Path) -> None:
    names = _names(sdist)
    text = (ROOT / "CMakeLists.txt").read_text()
    named = set(re.findall(r"\b((?:csrc|cmake|python)/[\w./-]+\.\w+)", text))
    named |= {f"{folder}/CMakeLists.txt" for folder in re.findall(r"add_subdirectory\((csrc/[\w/]+)\)", text)}
    assert "csrc/pushpull/push_pull_conv2d.cpp" in named and "csrc/bindings/numpy/CMakeLists.txt" in named
    assert named <= names, sorted(named - names)


def test_sdist_has_nothing_built(sdist: Path) -> None:
    built = [name for name in _names(sdist) if re.search(r"\.(so|o|pyc|a)$|^python/sturdy/(lib|include|share)/", name)]
    assert not built


@pytest.mark.full
def test_wheel_from_sdist(sdist: Path, tmp_path: Path) -> None:
    """The sdist builds from itself, and what it builds is complete and works where it is put."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    environment = {**python_environment(), "FORCE_CUDA": "0", "MAX_JOBS": "2", "PYTHONPATH": ""}
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, source, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"sturdy_kernels-[\d.]+-cp3\d+-cp3\d+-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for name in (
        *("lib/libsturdy_core.so", "lib/libsturdy_torch.so", "include/sturdy/sturdy.h", "include/sturdy/sturdy.hpp"),
        *("share/cmake/sturdy/sturdy-config.cmake", "py.typed", "numpy/__init__.py", "functional/pushpull.py"),
    ):
        assert f"sturdy/{name}" in names, name
    assert any(re.fullmatch(r"sturdy/_numpy\.\S+\.so", name) for name in names)
    assert all(name.startswith(("sturdy/", "sturdy_kernels-")) for name in names), sorted(names)
    assert not [name for name in names if "__pycache__" in name]

    target = tmp_path / "target"
    run(*pip, "install", "--no-deps", "--no-index", "--target", target, wheel, env=environment)
    code = """
import numpy as np, sturdy
from sturdy.numpy import push_pull_conv2d
out = push_pull_conv2d(np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32), 0.0)
assert (out == 9).all(), out
print(sturdy.__file__)
"""
    done = run_python(code, env=python_environment(target), cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(target)
