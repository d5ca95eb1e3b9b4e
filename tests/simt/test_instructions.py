"""Each instruction wrapper against what the PTX manual says it does, stated in NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from selftest_library import (
    EPS,
    FORWARD,
    ORDERS,
    RANDOM,
    KernelError,
    Library,
    RaceLibrary,
    aligned,
    from_bfloat16,
    order_id,
    race_library,
    simt_library,
    to_bfloat16,
    to_tf32,
)


@pytest.fixture(params=["plain", "race"])
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    """The executor, and the executor under the race checker, which must have nothing to say."""
    if request.param == "plain":
        plain = simt_library()
        plain.set_order(FORWARD)
        yield plain
        return
    checked = race_library()
    checked.set_order(FORWARD)
    checked.race_reset()
    yield checked
    assert checked.race_count() == 0, checked.race_report()


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


LANE = np.arange(32)
GROUP, IN_GROUP = LANE // 4, LANE % 4  # "groupID" and "threadID_in_group" of the PTX manual


# ---- ldmatrix --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrices", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(library, matrices, transposed):
    rows = rng().integers(0, 2**16, (8 * matrices, 8)).astype(np.uint16)
    fragment = np.zeros((32, matrices), np.uint32)
    library.call("ldmatrix", rows, fragment, matrices, transposed)
    for number in range(matrices):
        matrix = rows[8 * number : 8 * number + 8]
        matrix = matrix.T if transposed else matrix
        # Row groupID, columns 2 * threadID_in_group and the next, low half first.
        low, high = matrix[GROUP, 2 * IN_GROUP], matrix[GROUP, 2 * IN_GROUP + 1]
        np.testing.assert_array_equal(fragment[:, number], low.astype(np.uint32) | high.astype(np.uint32) << 16)


# ---- mma -------------------------------------------------------------------------------------------------------------


def pack(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << 16


def fragments_16(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fragments of A (16, 16) and B (16, 8), given as 16-bit patterns.

    PTX, mma.m16n8k16: element a_i lies in row groupID for i in {0, 1, 4, 5}, else groupID + 8, and in column
    threadID_in_group * 2 + (i & 1), plus 8 for i >= 4; b_i in row threadID_in_group * 2 + (i & 1), plus 8 for i >= 2,
    column groupID.
    """
    a_elements = [
        a[GROUP + (0 if i in (0, 1, 4, 5) else 8), IN_GROUP * 2 + (i & 1) + (8 if i >= 4 else 0)] for i in range(8)
    ]
    b_elements = [b[IN_GROUP * 2 + (i & 1) + (8 if i >= 2 else 0), GROUP] for i in range(4)]
    a_words = np.stack([pack(a_elements[2 * i], a_elements[2 * i + 1]) for i in range(4)], axis=1)
    b_words = np.stack([pack(b_elements[2 * i], b_elements[2 * i + 1]) for i in range(2)], axis=1)
    return np.ascontiguousarray(a_words), np.ascontiguousarray(b_words)


def fragments_32(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fragments of A (16, 8) and B (8, 8), given as 32-bit patterns.

    PTX, mma.m16n8k8 .tf32: a_i in row groupID for i in {0, 2}, else groupID + 8, and column threadID_in_group, plus 4
    for i >= 2; b_i in row threadID_in_group + 4 i, column groupID.
    """
    a_words = [a[GROUP + (0 if i in (0, 2) else 8), IN_GROUP + (4 if i >= 2 else 0)] for i in range(4)]
    b_words = [b[IN_GROUP + 4 * i, GROUP] for i in range(2)]
    return np.ascontiguousarray(np.stack(a_words, axis=1)), np.ascontiguousarray(np.stack(b_words, axis=1))


def accumulator(d: np.ndarray) -> np.ndarray:
    """Fragment (32, 4) of D (16, 8).

    PTX: c_i in row groupID for i < 2, else groupID + 8, and column threadID_in_group * 2 + (i & 1).
    """
    return np.stack([d[GROUP + (0 if i < 2 else 8), IN_GROUP * 2 + (i & 1)] for i in range(4)], axis=1)


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_mma(library, kind):
    depth = 8 if kind == "tf32" else 16
    generator = rng()
    a, b = generator.standard_normal((16, depth), np.float32), generator.standard_normal((depth, 8), np.float32)
    c = generator.standard_normal((16, 8), np.float32)
    if kind == "bf16":
        a_bits, b_bits = to_bfloat16(a), to_bfloat16(b)
        a, b = from_bfloat16(a_bits), from_bfloat16(b_bits)
        words = fragments_16(a_bits, b_bits)
    elif kind == "f16":
        a, b = a.astype(np.float16), b.astype(np.float16)
        words = fragments_16(a.view(np.uint16), b.view(np.uint16))
    else:
        # The unit ignores the low 13 bits: fill them.
        a, b = to_tf32(a), to_tf32(b)
        words = fragments_32(a.view(np.uint32) | np.uint32(0x1ABC), b.view(np.uint32) | np.uint32(0x1FFF))
    d = np.ascontiguousarray(accumulator(c))
    library.call("mma", *words, d, ["bf16", "f16", "tf32"].index(kind))
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    exact = accumulator(a64 @ b64 + c)
    allowed = accumulator((depth + 2) * EPS * (np.abs(a64) @ np.abs(b64) + np.abs(c)))
    assert np.all(np.abs(d - exact) <= allowed)


def test_float_to_tf32(library):
    x = np.concatenate([rng().standard_normal(200) * 10.0 ** rng().integers(-30, 30, 200), [0.0, -0.0, 1.0, -2.5]])
    x = np.concatenate(
        [x.astype(np.float32), np.array([0x3F801000, 0xBF801000, 0x3F800FFF], np.uint32).view(np.float32)]
    )
    y = np.zeros(len(x), np.uint32)
    library.call("float_to_tf32", x, y, len(x))
    assert not np.any(y & 0x1FFF)
    value = y.view(np.float32).astype(np.float64)
    # Nearest of the values with 10 fraction bits: no farther than half a step; a half goes away from zero.
    step = 2.0 ** (np.frexp(np.where(x == 0, 1, x).astype(np.float64))[1] - 1 - 10)
    assert np.all(np.abs(value - x) <= step / 2)
    np.testing.assert_array_equal(value[-3:], [1 + 2.0**-10, -1 - 2.0**-10, 1.0])
    np.testing.assert_array_equal(np.signbit(value), np.signbit(x))


def test_float_to_tf32_keeps_what_is_not_finite(library):
    x = np.array([np.inf, -np.inf, np.nan], np.float32)
    y = np.zeros(3, np.uint32)
    library.call("float_to_tf32", x, y, 3)
    np.testing.assert_array_equal(y.view(np.float32), x)


# ---- cp.async --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("valid", [0, 1, 3, 4, 8, 15, 16])
def test_cp_async(library, size, valid):
    if valid > size:
        valid = size
    source = aligned(rng().integers(1, 255, (32, size)).astype(np.uint8))
    after = np.zeros((32, size), np.uint8)
    # What lies in shared memory before the wait is undefined, and looking there is a finding of the race checker.
    before = None if isinstance(library, RaceLibrary) else np.zeros((32, size), np.uint8)
    library.call("cp_async", source, before, after, size, valid)
    np.testing.assert_array_equal(after, np.where(np.arange(size) < valid, source, 0))
    if before is not None:
        assert np.all(before == 0x5A)  # in forward order as late as possible


def test_cp_async_may_land_early():
    """In random order some copies land before the wait and some do not."""
    library = simt_library()
    library.set_order(RANDOM)
    source = aligned(rng().integers(1, 80, (32, 16)).astype(np.uint8))
    before, after = np.zeros((32, 16), np.uint8), np.zeros((32, 16), np.uint8)
    library.call("cp_async", source, before, after, 16, 16)
    landed = np.all(before == source, axis=1)
    waiting = np.all(before == 0x5A, axis=1)
    assert np.all(landed ^ waiting) and landed.any() and waiting.any()
    np.testing.assert_array_equal(after, source)


def test_cp_async_does_not_look_at_a_source_without_valid_bytes(library):
    after = np.ones((32, 16), np.uint8)
    library.call("cp_async", None, None, after, 16, 0)
    assert not after.any()


@pytest.mark.parametrize("groups_left", [0, 1, 2, 3])
def test_cp_async_groups(groups_left):
    """A wait that leaves n groups under way has seen all but the youngest n."""
    library = simt_library()
    library.set_order(FORWARD)
    source = np.array([5, 6, 7, 8], np.uint32)
    out = np.full(4, 99, np.uint32)
    library.call("cp_async_groups", source, out, groups_left)
    np.testing.assert_array_equal(out, np.where(np.arange(4) < 4 - groups_left, source, 0))


def test_valid_bytes_beyond_the_copy(library):
    source, after = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
    with pytest.raises(
        KernelError, match=r"valid bytes must be 0 to the size of the copy, got 9.*kernels_instructions\.cu"
    ):
        library.call("cp_async", aligned(source), None, after, 8, 9)


# ---- reductions, packs, shuffles, votes ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32"])
@pytest.mark.parametrize("width", [32, 8, 2, 1])
def test_warp_reduce(library, dtype, width):
    x = rng().integers(-50, 50, 32).astype(dtype)  # sums are exact in every type
    out = np.zeros((3, 32), dtype)
    library.call("warp_reduce", x, out, width, ["float32", "float64", "float16", "int32"].index(dtype))
    grouped = x.reshape(-1, width)
    for row, expected in zip(out, (grouped.sum(1), grouped.max(1), grouped.min(1)), strict=True):
        np.testing.assert_array_equal(row, np.repeat(expected, width))


def test_warp_sum_gives_all_lanes_the_same_bits(library):
    x = rng().standard_normal(32).astype(np.float32)
    out = np.zeros((3, 32), np.float32)
    library.call("warp_reduce", x, out, 32, 0)
    assert len({value.tobytes() for value in out[0]}) == 1
    assert abs(out[0, 0] - x.astype(np.float64).sum()) <= 5 * EPS * np.abs(x).sum()


def test_warp_extrema_keep_nan(library):
    x = np.zeros(32, np.float32)
    x[17] = np.nan
    out = np.zeros((3, 32), np.float32)
    library.call("warp_reduce", x, out, 32, 0)
    assert np.isnan(out).all()


@pytest.mark.parametrize("order", ORDERS, ids=order_id)
@pytest.mark.parametrize("threads", [32, 96, 512])
def test_block_reduce(library, order, threads):
    library.set_order(order)
    x = rng().integers(0, 20, threads).astype(np.float32)  # ties: the lowest index must win
    out = np.zeros((threads, 2), np.float32)
    library.call("block_reduce", x, out, threads)
    np.testing.assert_array_equal(out, np.tile([x.max(), x.argmax()], (threads, 1)))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("hint", [0, 1, 2])
def test_packed_copy(library, size, hint):
    count = 16 // size * 50
    x = aligned(rng().integers(0, 256, count * size).astype(np.uint8))
    y = aligned(np.zeros_like(x))
    library.call("packed_copy", x, y, count, size, hint)
    np.testing.assert_array_equal(y, x)


def test_packed_copy_wants_alignment(library):
    x, y = aligned(np.zeros(1024, np.uint8)), aligned(np.zeros(1024, np.uint8))
    with pytest.raises(KernelError, match="not 16-byte aligned"):
        library.call("packed_copy", x[4:], y, 4, 4, 0)
    with pytest.raises(KernelError, match="not 16-byte aligned"):
        library.call("packed_copy", x, y[8:], 4, 4, 0)


@pytest.mark.parametrize("width", [32, 16, 4])
@pytest.mark.parametrize("argument", [0, 1, 3, 7, 17])
@pytest.mark.parametrize("kind", ["idx", "xor", "down", "up"])
def test_shuffle(library, kind, argument, width):
    """The CUDA guide: lanes of other segments are out of reach; who points there keeps its own value."""
    x = rng().standard_normal(32)
    y = np.zeros(32)
    library.call("shuffle", x, y, ["idx", "xor", "down", "up"].index(kind), argument, width)
    expected = np.empty(32)
    for lane in range(32):
        first = lane // width * width
        if kind == "idx":
            source = first + argument % width
        elif kind == "xor":
            source = lane ^ argument
            source = source if source < first + width else lane  # a lower segment may be read, a higher one not
        elif kind == "down":
            source = lane + argument if lane + argument < first + width else lane
        else:
            source = lane - argument if lane - argument >= first else lane
        expected[lane] = x[source]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("pattern", ["mixed", "all", "none"])
def test_votes(library, pattern):
    x = {"mixed": rng().integers(-1, 2, 64), "all": np.ones(64), "none": np.zeros(64)}[pattern].astype(np.int32)
    out = np.zeros(6, np.int32)
    library.call("votes", x, out)
    positive = x > 0
    ballot = sum(1 << lane for lane in range(32) if positive[lane])
    expected = [positive[:32].any(), positive[:32].all(), positive.sum(), positive.any(), positive.all()]
    assert out.view(np.uint32)[0] == ballot
    np.testing.assert_array_equal(out[1:], expected)
