// Kernels that the executor, the race checker and the instruction wrappers are tested with. The functions are called
// from Python by ctypes, on host memory; each returns 0, or 1 with the reason in simt_test_error().
#pragma once

#include <cstddef>
#include <cstdint>

#define SIMT_TEST_API extern "C" __attribute__((visibility("default")))

// What went wrong in the last call.
SIMT_TEST_API const char* simt_test_error();

// ---- kernels.cu: ordinary kernels. `bug` plants a mistake; 0 is the right kernel. -----------------------------------

// C (M, N) = A (M, K) B (K, N), float32; K and N multiples of 4. Bug 1: no barrier before the tile is overwritten.
SIMT_TEST_API int simt_test_gemm(const float* a, const float* b, float* c, int m, int n, int k, int bug);

// Softmax over the rows of (rows, columns). dtype: 0 float32, 1 float64, 2 float16, 3 bfloat16.
SIMT_TEST_API int simt_test_softmax(const void* x, void* y, int rows, int columns, int dtype);

// Attention of (heads, length, 32), float32. Bug 1: no __syncwarp between writing and reading the probabilities.
SIMT_TEST_API int simt_test_attention(const float* q, const float* k, const float* v, float* out, int heads, int length,
                                      float scale, int bug);

// Two-dimensional FFT of (batch, 32, 32) complex numbers.
SIMT_TEST_API int simt_test_fft(const float* in, float* out, int batch);

// Moves the positive elements of x to the front of `out` (in any order), counts them and doubles their sum.
SIMT_TEST_API int simt_test_compact(const float* x, int n, int* count, float* out, float* sum, unsigned* ticket,
                                    float* doubled_sum);

// Column sums of (tiles, 128), one warp loading and four adding, by named barriers. Bug 1: the adders read and then
// wait.
SIMT_TEST_API int simt_test_named_barrier_pipeline(const float* x, float* out, int tiles, int bug);

// `iterations` times one synchronisation. which: 0 __syncthreads, 1 shuffle, 2 nothing.
SIMT_TEST_API int simt_test_speed(int which, float* x, int blocks, int threads, int iterations);

// ---- kernels_tensor_core.cu
// -------------------------------------------------------------------------------------------

// C (M, N) = A (M, K) B (K, N) with float32 sums. type: 0 bfloat16, 1 float16 (K and N multiples of 8), 2 tf32 (float32
// operands, K and N multiples of 4). Bug 1: no wait for the copies of a tile.
SIMT_TEST_API int simt_test_mma_gemm(const void* a, const void* b, float* c, int m, int n, int k, int type, int bug);

// Column sums of (tiles, 1024) by a ring of two buffers that bulk copies fill. Bug 1: the producer does not wait for a
// buffer to be empty.
SIMT_TEST_API int simt_test_ring(const float* x, float* out, int tiles, int bug);

// ---- kernels_instructions.cu: one instruction each
// ------------------------------------------------------------------------

// fragment (32, matrices) of the 16-bit matrices in rows (8 * matrices, 8).
SIMT_TEST_API int simt_test_ldmatrix(const uint16_t* rows, uint32_t* fragment, int matrices, int transposed);

// d (32, 4) += a (32, 4) * b (32, 2), all as fragments. type as above.
SIMT_TEST_API int simt_test_mma(const uint32_t* a, const uint32_t* b, float* d, int type);

SIMT_TEST_API int simt_test_float_to_tf32(const float* x, uint32_t* y, int n);

// Every thread of 32 copies `bytes` with `valid_bytes` valid; out gets what shared memory held before and after the
// wait.
SIMT_TEST_API int simt_test_cp_async(const uint8_t* in, uint8_t* before, uint8_t* after, int bytes, int valid_bytes);

// Commits four groups of one copy each and waits until `groups_left` are under way; out (4) is what shared memory
// holds.
SIMT_TEST_API int simt_test_cp_async_groups(const uint32_t* in, uint32_t* out, int groups_left);

// sum, max and min over each `width` lanes of x (32); out (3, 32). dtype: 0 float, 1 double, 2 half, 3 int32.
SIMT_TEST_API int simt_test_warp_reduce(const void* x, void* out, int width, int dtype);

// The pair (largest value, its lowest index) of x (threads) by block_reduce; out (threads, 2) as every thread sees it.
SIMT_TEST_API int simt_test_block_reduce(const float* x, float* out, int threads);

// y = x, n elements of `bytes` by packs of 16 bytes. hint: 0 normal, 1 read-only load, 2 streaming.
SIMT_TEST_API int simt_test_packed_copy(const void* x, void* y, int n, int bytes, int hint);

// Shuffles of x (32): kind 0 idx, 1 xor, 2 down, 3 up, with an argument and a width.
SIMT_TEST_API int simt_test_shuffle(const double* x, double* y, int kind, int argument, int width);

// out (6): ballot, any, all of x > 0 over 32 lanes; count, or, and over the block of 64 threads.
SIMT_TEST_API int simt_test_votes(const int* x, int* out);

// ---- kernels_planted.cu: small kernels with one mistake each
// -----------------------------------------------------------------

// Runs the mistake of this name on x (256). Unknown names return 2.
SIMT_TEST_API int simt_test_planted(const char* name, float* x);
