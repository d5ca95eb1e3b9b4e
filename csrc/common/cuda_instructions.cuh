// Instructions that C++ has no word for: asynchronous copies, named barriers, mbarrier, ldmatrix and mma. The only file
// with asm. When a kernel is compiled for the executor, host twins of the same names take their place; each wrapper's
// meaning is the one written here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda_platform.cuh"

#if defined(STURDY_SIMT)

#include "instructions.hpp"  // tests/simt

#else

namespace sturdy {

namespace detail {
STURDY_DEVICE unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
}  // namespace detail

// ---- cp.async: global to shared memory past the registers (sm_80) ---------------------------------------------------

// Copies 4, 8 or 16 bytes; both addresses are multiples of that. 16 bytes bypass L1.
template <int Bytes>
STURDY_DEVICE void cp_async(void* shared, const void* global) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const unsigned target = detail::shared_address(shared);
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(target), "l"(global), "n"(Bytes) : "memory");
  }
}

// The same, but only `valid_bytes` (0 to Bytes) are read; the others become zero. With 0 the source is not looked at.
template <int Bytes>
STURDY_DEVICE void cp_async_zero_fill(void* shared, const void* global, int valid_bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const unsigned target = detail::shared_address(shared);
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(valid_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(global), "n"(Bytes),
                 "r"(valid_bytes)
                 : "memory");
  }
}

// Closes the group of this thread's copies since the last commit.
STURDY_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `GroupsLeft` of this thread's youngest groups are under way. Other threads see the data only
// after a barrier that follows.
template <int GroupsLeft>
STURDY_DEVICE void cp_async_wait() {
  static_assert(GroupsLeft >= 0, "a number of groups");
  asm volatile("cp.async.wait_group %0;" ::"n"(GroupsLeft) : "memory");
}

// Waits for all of this thread's copies, committed or not.
STURDY_DEVICE void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- Named barriers
// ---------------------------------------------------------------------------------------------------

// Waits until `threads` threads (a multiple of 32, whole warps) have come to barrier `id` (1 to 15).
STURDY_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Counts as having come, without waiting.
STURDY_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- mbarrier and bulk copies (sm_90)
// -----------------------------------------------------------------------------------

// On an older architecture these end the kernel with an error; a kernel that uses them is launched on sm_90 and up
// only.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define STURDY_SM90_ASM(...) __trap()
#else
#define STURDY_SM90_ASM(...) asm volatile(__VA_ARGS__)
#endif

// A barrier in shared memory that also counts bytes. A phase ends when all arrivals have come and all announced bytes
// have landed; the next one begins at once. Phases have parity 0, 1, 0, 1 ...
class Mbarrier {
 public:
  // By one thread, before the others use it; mbarrier_init_fence() and a __syncthreads follow.
  STURDY_DEVICE void init(int arrivals) {
    STURDY_SM90_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory");
  }

  STURDY_DEVICE void arrive() {
    STURDY_SM90_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
  }

  // Arrives, and announces bytes that bulk copies will bring in this phase.
  STURDY_DEVICE void arrive_expect_bytes(int bytes) {
    STURDY_SM90_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
  }

  // Waits until the phase of this parity has ended.
  STURDY_DEVICE void wait(int parity) {
    STURDY_SM90_ASM(
        "{\n"
        ".reg .pred ended;\n"
        "try_again_%=:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
        "@!ended bra try_again_%=;\n"
        "}" ::"r"(address()),
        "r"(parity) : "memory");
  }

  STURDY_DEVICE unsigned address() { return detail::shared_address(&state_); }

 private:
  uint64_t state_;
};

// Makes initialised barriers known to the copy engine.
STURDY_DEVICE void mbarrier_init_fence() {
  STURDY_SM90_ASM("fence.mbarrier_init.release.cluster;\n fence.proxy.async.shared::cta;" :: : "memory");
}

// Copies `bytes` (a multiple of 16; both addresses too) by the copy engine and reports them to `barrier` on landing.
// One thread calls it.
STURDY_DEVICE void bulk_copy(void* shared, const void* global, int bytes, Mbarrier& barrier) {
  STURDY_SM90_ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                      detail::shared_address(shared)),
                  "l"(global), "r"(bytes), "r"(barrier.address()) : "memory");
}

#undef STURDY_SM90_ASM

// ---- ldmatrix: 8x8 matrices of 16-bit elements from shared memory
// -----------------------------------------------------

// Lanes 8 m to 8 m + 7 pass the addresses (multiples of 16) of the rows of matrix m. Lane 4 g + t gets in fragment[m]
// the elements [g][2t] and [g][2t + 1], the first in the low half; `_trans`: [2t][g] and [2t + 1][g].
STURDY_DEVICE void ldmatrix_x1(uint32_t (&fragment)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(fragment[0])
               : "r"(detail::shared_address(row))
               : "memory");
}

STURDY_DEVICE void ldmatrix_x2(uint32_t (&fragment)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(detail::shared_address(row))
               : "memory");
}

STURDY_DEVICE void ldmatrix_x4(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(detail::shared_address(row))
               : "memory");
}

STURDY_DEVICE void ldmatrix_x1_trans(uint32_t (&fragment)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(fragment[0])
               : "r"(detail::shared_address(row))
               : "memory");
}

STURDY_DEVICE void ldmatrix_x2_trans(uint32_t (&fragment)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(detail::shared_address(row))
               : "memory");
}

STURDY_DEVICE void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(detail::shared_address(row))
               : "memory");
}

// ---- mma: d += a * b by tensor cores, sums in float32 (sm_80)
// -----------------------------------------------------------
//
// Lane 4 g + t holds of the product d (16x8):  d[0, 1] = D[g][2t, 2t+1]  d[2, 3] = D[g+8][2t, 2t+1].
// m16n8k16:  a[0] = A[g][2t, 2t+1]  a[1] = A[g+8][2t, 2t+1]  a[2] = A[g][2t+8, 2t+9]  a[3] = A[g+8][2t+8, 2t+9]
//            b[0] = B[2t, 2t+1][g]  b[1] = B[2t+8, 2t+9][g]   (two 16-bit elements a word, the first in the low half)
// m16n8k8:   a[0] = A[g][t]  a[1] = A[g+8][t]  a[2] = A[g][t+4]  a[3] = A[g+8][t+4]  b[0] = B[t][g]  b[1] = B[t+4][g]

STURDY_DEVICE void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

STURDY_DEVICE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Operands from float_to_tf32(); the low 13 bits of other words are ignored.
STURDY_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest tf32 value (10 fraction bits, halves away from zero) as the word that mma takes.
STURDY_DEVICE uint32_t float_to_tf32(float value) {
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
  return word;
}

}  // namespace sturdy

#endif
