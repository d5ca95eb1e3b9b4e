// Host twins of the wrappers in csrc/common/cuda_instructions.cuh: the same names, the meaning that PTX gives them.
// That header includes this one when a kernel is compiled for the executor, and says there what each wrapper does.
#pragma once

#include <cstddef>
#include <cstdint>

#include "executor.hpp"

namespace simt {

void async_copy(void* shared, const void* global, int bytes, int valid_bytes, Site site);
void async_copy_wait(int groups_left, Site site);
void async_copy_commit();

void load_matrix(uint32_t* fragment, int matrices, bool transposed, const void* row, Site site);

enum class MmaType { bf16, f16, tf32 };
void multiply_accumulate(float* d, const uint32_t* a, const uint32_t* b, MmaType type, Site site);

}  // namespace simt

namespace sturdy {

// ---- cp.async. A copy lands as late as it may (at the wait that covers it), so that a missing wait reads poison; in
// random order each lands now or then.

template <int Bytes>
void cp_async(void* shared, const void* global, STURDY_SIMT_SITE) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  simt::async_copy(shared, global, Bytes, Bytes, site);
}

template <int Bytes>
void cp_async_zero_fill(void* shared, const void* global, int valid_bytes, STURDY_SIMT_SITE) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  simt::async_copy(shared, global, Bytes, valid_bytes, site);
}

inline void cp_async_commit() { simt::async_copy_commit(); }

template <int GroupsLeft>
void cp_async_wait(STURDY_SIMT_SITE) {
  static_assert(GroupsLeft >= 0, "a number of groups");
  simt::async_copy_wait(GroupsLeft, site);
}

inline void cp_async_wait_all(STURDY_SIMT_SITE) { simt::async_copy_wait(-1, site); }

// ---- Named barriers

inline void named_barrier_sync(int id, int threads, STURDY_SIMT_SITE) {
  simt::named_barrier(static_cast<unsigned>(id), static_cast<unsigned>(threads), true, "named_barrier_sync", site);
}

inline void named_barrier_arrive(int id, int threads, STURDY_SIMT_SITE) {
  simt::named_barrier(static_cast<unsigned>(id), static_cast<unsigned>(threads), false, "named_barrier_arrive", site);
}

// ---- mbarrier and bulk copies

class Mbarrier {
 public:
  void init(int arrivals, STURDY_SIMT_SITE);
  void arrive(STURDY_SIMT_SITE);
  void arrive_expect_bytes(int bytes, STURDY_SIMT_SITE);
  void wait(int parity, STURDY_SIMT_SITE);

  // A bulk copy that reports to this barrier was issued, or has landed.
  void bulk_copy_issued();
  void bulk_copy_landed(int bytes);

 private:
  void complete_phase_if_due();
  const void* published_by_phase(uint32_t parity) const { return reinterpret_cast<const char*>(this) + parity; }

  uint16_t arrivals_;        // per phase
  uint16_t arrivals_left_;   // in this phase
  int32_t bytes_left_ : 31;  // may pass below zero: a copy may land before its bytes are announced
  uint32_t parity_ : 1;      // of the phase that is under way
};
static_assert(sizeof(Mbarrier) == 8, "as large as the real one");

inline void mbarrier_init_fence() {}

void bulk_copy(void* shared, const void* global, int bytes, Mbarrier& barrier, STURDY_SIMT_SITE);

// ---- ldmatrix and mma

inline void ldmatrix_x1(uint32_t (&fragment)[1], const void* row, STURDY_SIMT_SITE) {
  simt::load_matrix(fragment, 1, false, row, site);
}
inline void ldmatrix_x2(uint32_t (&fragment)[2], const void* row, STURDY_SIMT_SITE) {
  simt::load_matrix(fragment, 2, false, row, site);
}
inline void ldmatrix_x4(uint32_t (&fragment)[4], const void* row, STURDY_SIMT_SITE) {
  simt::load_matrix(fragment, 4, false, row, site);
}
inline void ldmatrix_x1_trans(uint32_t (&fragment)[1], const void* row, STURDY_SIMT_SITE) {
  simt::load_matrix(fragment, 1, true, row, site);
}
inline void ldmatrix_x2_trans(uint32_t (&fragment)[2], const void* row, STURDY_SIMT_SITE) {
  simt::load_matrix(fragment, 2, true, row, site);
}
inline void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row, STURDY_SIMT_SITE) {
  simt::load_matrix(fragment, 4, true, row, site);
}

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], STURDY_SIMT_SITE) {
  simt::multiply_accumulate(d, a, b, simt::MmaType::bf16, site);
}
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], STURDY_SIMT_SITE) {
  simt::multiply_accumulate(d, a, b, simt::MmaType::f16, site);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], STURDY_SIMT_SITE) {
  simt::multiply_accumulate(d, a, b, simt::MmaType::tf32, site);
}

uint32_t float_to_tf32(float value);

}  // namespace sturdy
