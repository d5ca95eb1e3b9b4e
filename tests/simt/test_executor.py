"""The executor: kernels of every kind give the right result in every order, and mistakes end with a message."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from selftest_library import (
    EPS,
    FORWARD,
    ORDERS,
    REVERSE,
    KernelError,
    Library,
    aligned,
    check_product,
    from_bfloat16,
    order_id,
    planted_lines,
    run_attention,
    run_column_sums,
    run_gemm,
    run_mma_gemm,
    simt_library,
    to_bfloat16,
)


@pytest.fixture
def executor() -> Library:
    library = simt_library()
    library.set_order(FORWARD)
    return library


@pytest.fixture(params=ORDERS, ids=order_id)
def ordered(request: pytest.FixtureRequest, executor: Library) -> Library:
    """The library with its threads in each order."""
    executor.set_order(request.param)
    return executor


# ---- kernels of every kind, in every order ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64, 16), (100, 68, 52), (1, 4, 4), (130, 132, 16)], ids=str)
def test_gemm(ordered, size):
    check_product(*run_gemm(ordered, *size))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("columns", [1, 100, 777])
def test_softmax(ordered, dtype, columns):
    values = np.random.default_rng(5).standard_normal((3, columns)) * 3
    if dtype == "bfloat16":
        x = to_bfloat16(values)
        exact_x, number, eps = from_bfloat16(x).astype(np.float64), 3, 2.0**-7
    else:
        x = values.astype(dtype)
        exact_x, number, eps = x.astype(np.float64), ["float32", "float64", "float16"].index(dtype), np.finfo(dtype).eps
    y = np.full_like(x, 0)
    ordered.call("softmax", x, y, 3, columns, number)
    result = from_bfloat16(y) if dtype == "bfloat16" else y.astype(np.float64)
    e = np.exp(exact_x - exact_x.max(-1, keepdims=True))
    exact = e / e.sum(-1, keepdims=True)
    # exp turns the rounding of its argument into a relative error of that size; then the sum, and the rounding to y.
    sum_eps = np.finfo(np.float64).eps if dtype == "float64" else EPS
    relative = (np.ptp(exact_x) + columns / 128 + 24) * sum_eps + eps
    smallest = 2.0**-24 if dtype == "float16" else 0  # a subnormal result keeps only so much
    assert np.all(np.abs(result - exact) <= relative * exact + smallest)


@pytest.mark.parametrize("heads,length", [(1, 32), (2, 75), (3, 1)])
def test_attention(ordered, heads, length):
    run_attention(ordered, heads, length)


def test_fft(ordered):
    rng = np.random.default_rng(6)
    x = (rng.standard_normal((3, 32, 32)) + 1j * rng.standard_normal((3, 32, 32))).astype(np.complex64)
    y = np.full_like(x, np.nan)
    ordered.call("fft", x, y, 3)
    exact = np.fft.fft2(x.astype(np.complex128))
    # Ten stages, each with a product by a rounded factor and a sum.
    assert np.linalg.norm(y - exact) <= 10 * 6 * EPS * np.linalg.norm(exact)


@pytest.mark.parametrize("size", [(64, 64, 64), (100, 72, 56), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_tensor_core_gemm(ordered, kind, size):
    check_product(*run_mma_gemm(ordered, kind, *size))


@pytest.mark.parametrize("n", [1, 128, 1000])
def test_compaction_with_atomics(ordered, n):
    x = np.random.default_rng(7).standard_normal(n).astype(np.float32)
    out = np.full(n, np.nan, np.float32)
    count, ticket = np.zeros(1, np.int32), np.zeros(1, np.uint32)
    total, doubled = np.zeros(1, np.float32), np.full(1, np.nan, np.float32)
    ordered.call("compact", x, n, count, out, total, ticket, doubled)
    positive = x[x > 0]
    assert count[0] == len(positive)
    np.testing.assert_array_equal(np.sort(out[: count[0]]), np.sort(positive))
    assert np.isnan(out[count[0] :]).all()
    exact = positive.astype(np.float64).sum()
    assert abs(total[0] - exact) <= n * EPS * exact
    assert doubled[0] == 2 * total[0]


@pytest.mark.parametrize("tiles", [1, 2, 9])
def test_named_barrier_pipeline(ordered, tiles):
    run_column_sums(ordered, "named_barrier_pipeline", tiles, 128)


@pytest.mark.parametrize("tiles", [1, 2, 9])
def test_mbarrier_ring(ordered, tiles):
    run_column_sums(ordered, "ring", tiles, 1024)


def test_order_does_not_change_a_bit(executor):
    results = []
    for order in ORDERS:
        executor.set_order(order)
        results.append((run_gemm(executor, 70, 68, 36)[0], run_attention(executor, 2, 40)))
    for gemm, attention in results[1:]:
        np.testing.assert_array_equal(gemm, results[0][0])
        np.testing.assert_array_equal(attention, results[0][1])


@pytest.mark.parametrize("kernel", ["right_exchanges", "right_early_exit"])
def test_unusual_but_right(ordered, kernel):
    x = np.arange(256, dtype=np.float32)
    ordered.call("planted", kernel, x)
    thread = np.arange(128)
    if kernel == "right_early_exit":
        expected = np.where(thread < 96, 95 - thread, thread)
    else:
        value = ((thread + 64) % 128) ^ 33 ^ 1
        expected = np.where(thread < 16, value[thread ^ 15], value)
    np.testing.assert_array_equal(x[:128], expected)


# ---- mistakes end the launch -----------------------------------------------------------------------------------------

# Kernel, and the words that its message must have. Its marked line must be named as well.
ENDS_THE_LAUNCH = {
    "divergent_barrier": ["deadlock", "16 of 32 live threads wait at __syncthreads", "__shfl_xor_sync"],
    "two_barriers": ["barrier divergence", "different __syncthreads"],
    "mask_names_exited_lane": ["warp mask names an exited lane"],
    "mask_without_caller": ["the warp mask leaves out the calling lane"],
    "different_collectives": ["different warp collectives", "__shfl_xor_sync", "__ballot_sync"],
    "mma_at_two_places": ["warp-wide instruction at different places"],
    "spins_for_ever": ["livelock", "atomic"],
    "mbarrier_never_completes": ["deadlock", "Mbarrier::wait"],
    "named_barrier_sizes_differ": ["disagree on the size of named barrier 1"],
    "trap": ["__trap", "thread (5,0,0)"],
    "shared_write_beyond": ["out-of-bounds shared access: byte 256 of 256"],
    "null_pointer": ["invalid memory access at 0x"],
    "misaligned_pack": ["not 16-byte aligned", "load_packed"],
    "misaligned_copy": ["not 16-byte aligned", "cp_async"],
}


@pytest.mark.parametrize("kernel", ENDS_THE_LAUNCH)
def test_mistake_is_named(ordered, kernel):
    x = aligned(np.arange(256, dtype=np.float32))
    with pytest.raises(KernelError) as caught:
        ordered.call("planted", kernel, x)
    message = str(caught.value)
    for words in ENDS_THE_LAUNCH[kernel]:
        # In other orders another thread may be the first to notice.
        assert words in message or (kernel == "named_barrier_sizes_differ" and "disagree" in message), message
    if kernel != "named_barrier_sizes_differ" or "96" in message:
        assert any(f"kernels_planted.cu:{line}" in message for line in planted_lines(kernel)), message


def test_stack_overflow_is_named(ordered):
    with pytest.raises(KernelError, match=r"stack overflow: .* exceed 64 KiB .*kernels_planted\.cu:\d+"):
        ordered.call("planted", "stack_overflow", np.zeros(256, np.float32))


def test_write_beyond_ragged_shared_memory_is_noticed(ordered):
    """The few bytes between an odd size and the guard page are looked at after the block."""
    with pytest.raises(KernelError, match="out-of-bounds shared write: byte 252 beside 252 bytes"):
        ordered.call("planted", "shared_write_beyond_ragged", np.zeros(256, np.float32))


@pytest.mark.parametrize(
    "kernel,message",
    [
        ("too_many_threads", r"invalid launch: block \(1025, 1, 1\) must have 1 to 1024 threads"),
        ("too_much_shared_memory", "invalid launch: 233472 bytes of dynamic shared memory, at most 232448"),
        ("empty_grid", r"invalid launch: grid \(0, 1, 1\) must be at least 1"),
    ],
)
def test_impossible_launch(executor, kernel, message):
    with pytest.raises(KernelError, match=message):
        executor.call("planted", kernel, np.zeros(256, np.float32))


def test_ring_without_waiting_for_empty_buffers(ordered):
    with pytest.raises(KernelError, match=r"more arrivals at an mbarrier .*kernels_tensor_core\.cu:\d+"):
        run_column_sums(ordered, "ring", 9, 1024, bug=1)


def test_next_launch_after_an_error(executor):
    for kernel in ("divergent_barrier", "null_pointer", "stack_overflow", "mbarrier_never_completes"):
        with pytest.raises(KernelError):
            executor.call("planted", kernel, np.zeros(256, np.float32))
        check_product(*run_gemm(executor, 64, 64, 16))


# ---- mistakes that show in the result --------------------------------------------------------------------------------


def wrong_results(library: Library, kernel: str, expected: np.ndarray) -> list[tuple[int, int]]:
    """The orders in which the kernel gives something else than expected."""
    wrong = []
    for order in ORDERS:
        library.set_order(order)
        x = np.arange(256, dtype=np.float32)
        library.call("planted", kernel, x)
        if not np.array_equal(x[: len(expected)], expected):
            wrong.append(order)
    return wrong


def test_missing_barrier_reads_poison(executor):
    assert FORWARD in wrong_results(executor, "missing_block_barrier", np.arange(64)[::-1])


def test_early_overwrite_shows_in_some_order(executor):
    wrong = wrong_results(executor, "overwrites_too_early", (np.arange(64) + 1) % 64)
    assert REVERSE in wrong and FORWARD not in wrong  # which is why there is more than one order


def test_blocks_that_exchange_show_in_the_result(executor):
    assert wrong_results(executor, "blocks_exchange", np.concatenate([np.arange(64, 128), np.arange(64)]))


def test_uninitialised_shared_memory_is_nan(ordered):
    x = np.zeros(256, np.float32)
    ordered.call("planted", "uninitialised_shared", x)
    np.testing.assert_array_equal(np.isnan(x[:64]), np.arange(64) == 40)


def test_read_before_shared_memory_is_nan(executor):
    x = np.zeros(256, np.float32)
    executor.call("planted", "shared_read_before", x)
    np.testing.assert_array_equal(np.isnan(x[:64]), np.arange(64) == 0)


def test_gemm_without_its_barrier_is_wrong(executor):
    wrong = 0
    for order in ORDERS:
        executor.set_order(order)
        c, a, b = run_gemm(executor, 64, 64, 64, bug=1)
        wrong += not np.allclose(c, a.astype(np.float64) @ b, rtol=1e-3, atol=1e-3)
    assert wrong


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_missing_copy_wait_reads_poison(executor, kind):
    c, _, _ = run_mma_gemm(executor, kind, 64, 64, 96, bug=1)
    assert np.isnan(c).any()


def test_named_barrier_not_waited_for_is_wrong(executor):
    executor.set_order(REVERSE)  # the adders first
    with pytest.raises(AssertionError):
        run_column_sums(executor, "named_barrier_pipeline", 5, 128, bug=1)


# ---- the executor as a citizen of the process ------------------------------------------------------------------------


def test_statistics(executor):
    before = executor.stats()
    executor.call("speed", 0, np.zeros(64, np.float32), 3, 64, 5)
    launches, blocks, threads, _, barriers, collectives = executor.stats() - before
    assert (launches, blocks, threads, barriers, collectives) == (1, 3, 192, 15, 0)
    before = executor.stats()
    executor.call("speed", 1, np.zeros(64, np.float32), 3, 64, 5)
    assert (executor.stats() - before)[5] == 3 * 2 * 5


def compacted(library: Library) -> bytes:
    """The order in which blocks and warps came by."""
    x = np.random.default_rng(8).standard_normal(1000).astype(np.float32)
    out = np.zeros(1000, np.float32)
    scalars = [np.zeros(1, t) for t in (np.int32, np.float32, np.uint32, np.float32)]
    library.call("compact", x, 1000, scalars[0], out, *scalars[1:])
    return out.tobytes()


def test_a_seed_repeats_a_random_order(executor):
    seen = {}
    for seed in (1, 2, 3, 1, 2, 3):
        executor.set_order((2, seed))
        result = compacted(executor)
        assert seen.setdefault(seed, result) == result
    assert len(set(seen.values())) == 3


def test_unknown_order_is_refused(executor):
    assert executor.library.sturdy_simt_set_order(3, 0) == -1


def test_launches_from_several_threads(executor):
    failures = []

    def work() -> None:
        try:
            for _ in range(3):
                check_product(*run_gemm(executor, 64, 68, 20))
                run_attention(executor, 1, 40)
                run_column_sums(executor, "ring", 3, 1024)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_faults_elsewhere_reach_their_own_handler(executor):
    """The trap for kernel faults is gone after the launch."""
    program = f"""
import faulthandler, ctypes
faulthandler.enable()
library = ctypes.CDLL({str(executor.path)!r})
buffer = (ctypes.c_float * 256)()
assert library.simt_test_planted(b"null_pointer", buffer) == 1
assert library.simt_test_planted(b"stack_overflow", buffer) == 1
print("alive", flush=True)
ctypes.string_at(8)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n"
    assert done.returncode < 0 and "Fatal Python error: Segmentation fault" in done.stderr
