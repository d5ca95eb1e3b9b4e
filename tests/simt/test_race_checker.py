"""The race checker: silent on right kernels, and names each planted mistake, also where no result shows it."""

from __future__ import annotations

import numpy as np
import pytest
from selftest_library import (
    ORDERS,
    REVERSE,
    KernelError,
    RaceLibrary,
    aligned,
    check_product,
    named_source_lines,
    order_id,
    planted_lines,
    race_library,
    run_attention,
    run_column_sums,
    run_gemm,
    run_mma_gemm,
)


@pytest.fixture(params=ORDERS, ids=order_id)
def checked(request: pytest.FixtureRequest) -> RaceLibrary:
    """The library under the checker, with no findings yet, in each order."""
    library = race_library()
    library.set_order(request.param)
    library.race_reset()
    return library


def assert_silent(library: RaceLibrary) -> None:
    assert library.race_count() == 0, library.race_report()


# ---- right kernels ---------------------------------------------------------------------------------------------------


def test_silent_on_gemm(checked):
    check_product(*run_gemm(checked, 70, 68, 36))
    assert_silent(checked)


def test_silent_on_softmax(checked):
    for dtype, number in ((np.float32, 0), (np.float64, 1), (np.float16, 2), (np.uint16, 3)):
        x = np.ones((2, 200), dtype)
        checked.call("softmax", x, np.empty_like(x), 2, 200, number)
    assert_silent(checked)


def test_silent_on_attention(checked):
    run_attention(checked, 2, 40)
    assert_silent(checked)


def test_silent_on_fft(checked):
    x = np.ones((2, 32, 32), np.complex64)
    checked.call("fft", x, np.empty_like(x), 2)
    assert_silent(checked)


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_silent_on_tensor_core_gemm(checked, kind):
    check_product(*run_mma_gemm(checked, kind, 70, 72, 96))
    assert_silent(checked)


def test_silent_on_compaction(checked):
    x = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    scalars = [np.zeros(1, t) for t in (np.int32, np.float32, np.uint32, np.float32)]
    checked.call("compact", x, 500, scalars[0], np.zeros(500, np.float32), *scalars[1:])
    assert scalars[0][0] == (x > 0).sum()
    assert_silent(checked)


def test_silent_on_pipelines(checked):
    run_column_sums(checked, "named_barrier_pipeline", 7, 128)
    run_column_sums(checked, "ring", 7, 1024)
    assert_silent(checked)


@pytest.mark.parametrize("kernel", ["right_exchanges", "right_early_exit"])
def test_silent_on_unusual_but_right(checked, kernel):
    checked.call("planted", kernel, np.zeros(256, np.float32))
    assert_silent(checked)


def test_memory_may_change_hands_between_launches(checked):
    """What one launch wrote, the next may read and write from any block."""
    x = np.zeros(256, np.float32)
    for blocks in (1, 2, 1):
        checked.call("speed", 2, x[:64], 1, 64, blocks)
    assert_silent(checked)


# ---- planted mistakes ------------------------------------------------------------------------------------------------

# Kernel, and words that the report must have. A finding must name the marked line.
FOUND = {
    "missing_block_barrier": ["race", "dynamic shared memory"],
    "shuffle_instead_of_syncwarp": ["race: read (static shared memory", "not ordered with the write"],
    "syncwarp_across_warps": ["race: read (static shared memory"],
    "overwrites_too_early": ["race", "not ordered with the read"],
    "uninitialised_shared": ["uninitialised read (byte 160 of dynamic shared memory) by thread 40 of block 0"],
    "uninitialised_static_shared": ["uninitialised read (static shared memory", "by thread 40 of block 0"],
    "blocks_write_one_address": ["race: write (global memory", "of block 0", "of block 1"],
    "blocks_exchange": ["race", "global memory", "of block 0", "of block 1"],
    "atomic_and_plain": ["race", "global memory"],
    "two_byte_neighbours_race": ["race", "dynamic shared memory"],
    "copy_without_barrier": ["dynamic shared memory"],
    "copy_without_wait": ["asynchronous copy that was not waited for", "copy issued"],
    "wrong_named_barrier": ["race: read", "dynamic shared memory"],
}

# Those whose result is right in forward order: only the checker can tell.
INVISIBLE = {"shuffle_instead_of_syncwarp", "syncwarp_across_warps", "wrong_named_barrier", "copy_without_barrier"}


@pytest.mark.parametrize("kernel", FOUND)
def test_mistake_is_found(checked, kernel):
    x = aligned(np.arange(256, dtype=np.float32))
    checked.call("planted", kernel, x)
    report = checked.race_report()
    assert checked.race_count() >= 1
    for words in FOUND[kernel]:
        assert words in report, report
    assert any(f"kernels_planted.cu:{line}" in report for line in planted_lines(kernel)), report


def test_found_once_however_often_it_happens(checked):
    for _ in range(3):
        checked.call("planted", "blocks_write_one_address", np.zeros(256, np.float32))
    assert checked.race_count() == 1
    checked.race_reset()
    assert checked.race_count() == 0 and checked.race_report() == ""


@pytest.mark.parametrize(
    "kernel,words",
    [
        ("shared_write_beyond", "out-of-bounds shared write: byte 256 to 260 of 256 bytes"),
        ("shared_write_beyond_ragged", "out-of-bounds shared write: byte 252 to 256 of 252 bytes"),
        ("shared_read_before", "out-of-bounds shared read: byte -4 to 0 of 256 bytes"),
    ],
)
def test_out_of_bounds_ends_the_launch(checked, kernel, words):
    with pytest.raises(KernelError) as caught:
        checked.call("planted", kernel, np.zeros(256, np.float32))
    message = str(caught.value)
    line = planted_lines(kernel.removesuffix("_ragged"))[0]
    assert words in message and message.endswith(f"kernels_planted.cu:{line}"), message
    assert "out-of-bounds shared access" in checked.race_report()


def test_attention_without_syncwarp(checked):
    """The result is right in every order; CUDA does not promise it."""
    run_attention(checked, 1, 40, bug=1)
    report = checked.race_report()
    assert checked.race_count() >= 1
    assert any("shared->probability[row][j]" in line for line in named_source_lines(report, "kernels.cu")), report


def test_gemm_without_its_barrier(checked):
    run_gemm(checked, 64, 64, 32, bug=1)
    report = checked.race_report()
    named = named_source_lines(report, "kernels.cu")
    assert "race" in report and any("a_tile" in line or "b_tile" in line for line in named), report


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_missing_copy_wait(checked, kind):
    run_mma_gemm(checked, kind, 64, 64, 96, bug=1)
    report = checked.race_report()
    assert "read of an asynchronous copy that was not waited for" in report, report
    named = named_source_lines(report, "kernels_tensor_core.cu")
    assert any("cp_async_zero_fill" in line for line in named), report
    assert any("ldmatrix" in line or "float_to_tf32" in line for line in named), report


def test_ring_without_waiting_for_empty_buffers(checked):
    with pytest.raises(KernelError, match="more arrivals at an mbarrier"):
        run_column_sums(checked, "ring", 9, 1024, bug=1)


def test_named_barrier_not_waited_for(checked):
    x = aligned(np.ones((5, 128), np.float32))
    checked.call("named_barrier_pipeline", x, np.zeros(128, np.float32), 5, 1)
    report = checked.race_report()
    named = named_source_lines(report, "kernels.cu")
    assert checked.race_count() >= 1 and any("shared->tile[buffer]" in line for line in named), report


def test_invisible_mistakes_are_invisible():
    """Without the checker these pass, which is what it is for."""
    library = race_library()
    library.set_order(REVERSE)
    thread = np.arange(128)
    for kernel, partner in (("shuffle_instead_of_syncwarp", thread ^ 1), ("wrong_named_barrier", (thread + 64) % 128)):
        x = np.arange(256, dtype=np.float32)
        library.call("planted", kernel, x)
        np.testing.assert_array_equal(x[:128], partner)
    library.race_reset()
