// What the instructions do. The layouts are those of the PTX manual, written out once for all 32 lanes.
#include "instructions.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <vector>

namespace simt {
namespace {

// ---- cp.async -------------------------------------------------------------------------------------------------------

struct AsyncCopy {
  void* shared;
  const void* global;
  uint8_t bytes;
  uint8_t valid_bytes;  // the rest becomes zero
  bool landed;          // ahead of the wait, which random order allows
  uint32_t group;
  Site site;
};

// The copies that one thread has issued and not yet waited for.
struct AsyncCopyQueue {
  uint64_t block = 0;  // whose they are; a queue of an older block is empty
  uint32_t group = 0;  // open for more copies
  std::vector<AsyncCopy> copies;
};

AsyncCopyQueue queues[1024];

AsyncCopyQueue& own_queue() {
  AsyncCopyQueue& queue = queues[current_thread];
  if (queue.block != block_serial()) {
    queue.block = block_serial();
    queue.group = 0;
    queue.copies.clear();
  }
  return queue;
}

void land(const AsyncCopy& copy) {
  char bytes[16] = {};
  memcpy(bytes, copy.global, copy.valid_bytes);
  memcpy(copy.shared, bytes, copy.bytes);
}

// ---- mma ------------------------------------------------------------------------------------------------------------

struct MultiplyAccumulate {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

float low_half_as_float(uint32_t word, MmaType type) {
  const uint16_t bits = static_cast<uint16_t>(word);
  if (type == MmaType::bf16) {
    const uint32_t widened = uint32_t{bits} << 16;
    float value;
    memcpy(&value, &widened, sizeof value);
    return value;
  }
  return __half2float(__ushort_as_half(bits));
}

// The unit reads the upper 19 bits of a tf32 operand and ignores the others.
float tf32_as_float(uint32_t word) {
  word &= ~uint32_t{0x1fff};
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

constexpr int mma_rows = 16;
constexpr int mma_columns = 8;

// D (16x8) += A (16xDepth, row-major) * B (Depthx8, column-major). Lane 4 g + t holds, for 16-bit elements,
//   a[0] = A[g][2t, 2t+1]  a[1] = A[g+8][2t, 2t+1]  a[2] = A[g][2t+8, 2t+9]  a[3] = A[g+8][2t+8, 2t+9]
//   b[0] = B[2t, 2t+1][g]  b[1] = B[2t+8, 2t+9][g]
// and for tf32
//   a[0] = A[g][t]  a[1] = A[g+8][t]  a[2] = A[g][t+4]  a[3] = A[g+8][t+4]  b[0] = B[t][g]  b[1] = B[t+4][g]
// and of D in every case  d[0, 1] = D[g][2t, 2t+1]  d[2, 3] = D[g+8][2t, 2t+1].
template <int Depth>
void accumulate_product(void* const* payloads, const float (&a)[mma_rows][Depth],
                        const float (&b)[Depth][mma_columns]) {
  float product[mma_rows][mma_columns] = {};
  for (int row = 0; row < mma_rows; ++row) {
    for (int k = 0; k < Depth; ++k) {
      for (int column = 0; column < mma_columns; ++column) {
        product[row][column] += a[row][k] * b[k][column];
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<MultiplyAccumulate*>(payloads[lane])->d;
    for (int i = 0; i < 4; ++i) {
      d[i] += product[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  }
}

template <MmaType Type>
void combine_16_bit(void* const* payloads, uint32_t) {
  float a[mma_rows][16];
  float b[16][mma_columns];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& operands = *static_cast<MultiplyAccumulate*>(payloads[lane]);
    const int group = lane / 4;
    const int in_group = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const int k = 2 * in_group + half;
      for (int i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][k + i / 2 * 8] = low_half_as_float(operands.a[i] >> 16 * half, Type);
      }
      for (int i = 0; i < 2; ++i) {
        b[k + i * 8][group] = low_half_as_float(operands.b[i] >> 16 * half, Type);
      }
    }
  }
  accumulate_product(payloads, a, b);
}

void combine_tf32(void* const* payloads, uint32_t) {
  float a[mma_rows][8];
  float b[8][mma_columns];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& operands = *static_cast<MultiplyAccumulate*>(payloads[lane]);
    const int group = lane / 4;
    const int k = lane % 4;
    for (int i = 0; i < 4; ++i) {
      a[group + i % 2 * 8][k + i / 2 * 4] = tf32_as_float(operands.a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[k + i * 4][group] = tf32_as_float(operands.b[i]);
    }
  }
  accumulate_product(payloads, a, b);
}

// ---- ldmatrix -------------------------------------------------------------------------------------------------------

struct LoadMatrix {
  uint32_t* fragment;
  const void* row;
};

// Lanes 8 m .. 8 m + 7 bring the addresses of the rows of the m-th 8x8 matrix of 16-bit elements. Lane 4 g + t gets of
// each the elements [g][2t, 2t+1], or [2t, 2t+1][g] when transposed.
template <int Matrices, bool Transposed>
void combine_load_matrix(void* const* payloads, uint32_t) {
  for (int matrix = 0; matrix < Matrices; ++matrix) {
    for (int lane = 0; lane < 32; ++lane) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const int along = lane % 4 * 2 + i;
        const int across = lane / 4;
        const int row = Transposed ? along : across;
        const int column = Transposed ? across : along;
        const auto& source = *static_cast<LoadMatrix*>(payloads[8 * matrix + row]);
        memcpy(&pair[i], static_cast<const char*>(source.row) + column * sizeof(uint16_t), sizeof(uint16_t));
      }
      memcpy(&static_cast<LoadMatrix*>(payloads[lane])->fragment[matrix], pair, sizeof pair);
    }
  }
}

// ---- Bulk copies ----------------------------------------------------------------------------------------------------

struct BulkCopy {
  void* shared;
  const void* global;
  int bytes;
  sturdy::Mbarrier* barrier;
  unsigned thread;
  Site site;
};

std::vector<BulkCopy> bulk_copies;  // under way, of the block whose number is below
uint64_t bulk_copies_block = 0;

void note(const void* address, size_t bytes, Access kind, Site site, unsigned thread = current_thread) {
  if (observer != nullptr) {
    observer->access(address, bytes, kind, site, thread);
  }
}

// One of them lands: the oldest, or in random order any.
bool land_one_bulk_copy() {
  if (bulk_copies_block != block_serial() || bulk_copies.empty()) {
    return false;
  }
  size_t which = 0;
  while (which + 1 < bulk_copies.size() && coin()) {
    ++which;
  }
  const BulkCopy copy = bulk_copies[which];
  bulk_copies.erase(bulk_copies.begin() + static_cast<ptrdiff_t>(which));
  memcpy(copy.shared, copy.global, static_cast<size_t>(copy.bytes));
  note(copy.shared, static_cast<size_t>(copy.bytes), Access::async_landed, copy.site, copy.thread);
  copy.barrier->bulk_copy_landed(copy.bytes);
  return true;
}

}  // namespace

void async_copy(void* shared, const void* global, int bytes, int valid_bytes, Site site) {
  const ExecutorScope scope;
  const char* operation = "cp_async";
  require_aligned(shared, static_cast<size_t>(bytes), operation, site);
  if (valid_bytes < 0 || valid_bytes > bytes) {
    fail_at("the valid bytes must be 0 to the size of the copy, got " + std::to_string(valid_bytes), operation, site);
  }
  if (valid_bytes > 0) {  // otherwise the source is not looked at
    require_aligned(global, static_cast<size_t>(bytes), operation, site);
    note(global, static_cast<size_t>(valid_bytes), Access::read, site);
  }
  note(shared, static_cast<size_t>(bytes), Access::async_write, site);
  AsyncCopyQueue& queue = own_queue();
  AsyncCopy copy{shared,      global, static_cast<uint8_t>(bytes), static_cast<uint8_t>(valid_bytes), coin(),
                 queue.group, site};
  if (copy.landed) {
    land(copy);
  }
  queue.copies.push_back(copy);
}

void async_copy_commit() {
  const ExecutorScope scope;
  own_queue().group++;
}

// Lands all but the `groups_left` youngest committed groups; with -1, also what was never committed.
void async_copy_wait(int groups_left, Site) {
  const ExecutorScope scope;
  AsyncCopyQueue& queue = own_queue();
  std::vector<AsyncCopy>& copies = queue.copies;
  size_t landed = 0;
  while (landed < copies.size() &&
         (groups_left < 0 || copies[landed].group + static_cast<uint32_t>(groups_left) < queue.group)) {
    const AsyncCopy& copy = copies[landed++];
    if (!copy.landed) {
      land(copy);
    }
    note(copy.shared, copy.bytes, Access::async_complete, copy.site);
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(landed));
}

void load_matrix(uint32_t* fragment, int matrices, bool transposed, const void* row, Site site) {
  const ExecutorScope scope;
  LoadMatrix payload{fragment, row};
  if (static_cast<int>(current_lane()) < 8 * matrices) {  // other lanes' addresses are not used
    require_aligned(row, 16, "ldmatrix", site);
    note(row, 16, Access::read, site);
  }
  const Combine combine = matrices == 1   ? transposed ? combine_load_matrix<1, true> : combine_load_matrix<1, false>
                          : matrices == 2 ? transposed ? combine_load_matrix<2, true> : combine_load_matrix<2, false>
                          : transposed    ? combine_load_matrix<4, true>
                                          : combine_load_matrix<4, false>;
  collective(0xffffffffu, combine, &payload, CollectiveKind::whole_warp, "ldmatrix", site);
}

void multiply_accumulate(float* d, const uint32_t* a, const uint32_t* b, MmaType type, Site site) {
  const ExecutorScope scope;
  MultiplyAccumulate payload{d, a, b};
  const Combine combine = type == MmaType::bf16  ? combine_16_bit<MmaType::bf16>
                          : type == MmaType::f16 ? combine_16_bit<MmaType::f16>
                                                 : combine_tf32;
  collective(0xffffffffu, combine, &payload, CollectiveKind::whole_warp, "mma", site);
}

}  // namespace simt

namespace sturdy {

// ---- mbarrier: a phase ends when all arrivals have come and all announced bytes have landed. A thread that waits for
// the phase of parity p sleeps as long as that phase is under way.

void Mbarrier::init(int arrivals, simt::Site site) {
  const simt::ExecutorScope scope;
  simt::require_aligned(this, 8, "Mbarrier::init", site);
  if (arrivals < 1 || arrivals > 0xffff) {
    simt::fail_at("an mbarrier counts 1 to 65535 arrivals, got " + std::to_string(arrivals), "Mbarrier::init", site);
  }
  arrivals_ = arrivals_left_ = static_cast<uint16_t>(arrivals);
  bytes_left_ = 0;
  parity_ = 0;
  if (simt::observer != nullptr) {
    simt::observer->access(this, sizeof *this, simt::Access::write, site, simt::current_thread);
    simt::observer->forget(published_by_phase(0));
    simt::observer->forget(published_by_phase(1));
  }
}

void Mbarrier::complete_phase_if_due() {
  if (arrivals_left_ != 0 || bytes_left_ != 0) {
    return;
  }
  parity_ ^= 1;
  arrivals_left_ = arrivals_;
  if (simt::observer != nullptr) {
    simt::observer->forget(published_by_phase(parity_));  // the phase before the last; all its waiters are through
  }
  simt::wake(this);
}

void Mbarrier::arrive(simt::Site site) { arrive_expect_bytes(0, site); }

void Mbarrier::arrive_expect_bytes(int bytes, simt::Site site) {
  const simt::ExecutorScope scope;
  if (arrivals_left_ == 0) {
    simt::fail_at("more arrivals at an mbarrier than its phase counts", "Mbarrier::arrive", site);
  }
  if (simt::observer != nullptr) {
    simt::observer->access(this, sizeof *this, simt::Access::atomic, site, simt::current_thread);
    simt::observer->release(simt::current_thread, published_by_phase(parity_));
  }
  bytes_left_ += bytes;
  arrivals_left_--;
  complete_phase_if_due();
}

void Mbarrier::wait(int parity, simt::Site site) {
  const simt::ExecutorScope scope;
  if (simt::observer != nullptr) {
    simt::observer->access(this, sizeof *this, simt::Access::atomic, site, simt::current_thread);
  }
  while (parity_ == static_cast<uint32_t>(parity & 1)) {
    simt::sleep_on(this, "Mbarrier::wait", site);
  }
  if (simt::observer != nullptr) {
    simt::observer->acquire(simt::current_thread, published_by_phase(static_cast<uint32_t>(parity & 1)));
  }
}

void Mbarrier::bulk_copy_issued() {
  if (simt::observer != nullptr) {
    simt::observer->release(simt::current_thread, published_by_phase(parity_));
  }
}

void Mbarrier::bulk_copy_landed(int bytes) {
  bytes_left_ -= bytes;
  complete_phase_if_due();
}

void bulk_copy(void* shared, const void* global, int bytes, Mbarrier& barrier, simt::Site site) {
  const simt::ExecutorScope scope;
  simt::require_aligned(shared, 16, "bulk_copy", site);
  simt::require_aligned(global, 16, "bulk_copy", site);
  if (bytes <= 0 || bytes % 16 != 0) {
    simt::fail_at("the size must be a multiple of 16 bytes, got " + std::to_string(bytes), "bulk_copy", site);
  }
  simt::note(global, static_cast<size_t>(bytes), simt::Access::read, site);
  simt::note(shared, static_cast<size_t>(bytes), simt::Access::async_write, site);
  barrier.bulk_copy_issued();
  if (simt::bulk_copies_block != simt::block_serial()) {
    simt::bulk_copies_block = simt::block_serial();
    simt::bulk_copies.clear();
    simt::set_async_engine(simt::land_one_bulk_copy);
  }
  simt::bulk_copies.push_back({shared, global, bytes, &barrier, simt::current_thread, site});
}

// cvt.rna.tf32.f32: to the nearest value of 10 fraction bits, halves away from zero.
uint32_t float_to_tf32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  if (finite) {
    bits += 0x1000u;
  }
  return bits & ~uint32_t{0x1fff};
}

}  // namespace sturdy
