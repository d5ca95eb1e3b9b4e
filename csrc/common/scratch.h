// Host memory for the duration of one call or one task, kept by each thread between calls.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/half.h"

namespace sturdy {

// A thread that started a call also works on its tasks, so the two have memory of their own; and so have matrix
// products, which calls and tasks may start while they hold theirs.
enum class ScratchSlot { call, task, product, product_task };

// At least `bytes` bytes, aligned to 64, contents unspecified; valid until the next request for the same slot on this
// thread. Throws std::bad_alloc.
void* host_scratch(ScratchSlot slot, size_t bytes);

// Gives back what this thread holds in `slot` beyond what is worth keeping. Call it when the contents are done with.
void trim_host_scratch(ScratchSlot slot);

// Deals out aligned pieces of a block. Started on a null block it only counts, so the same code first finds the size
// and then the places.
class Arena {
 public:
  explicit STURDY_ALWAYS_INLINE Arena(void* block) : block_(static_cast<char*>(block)) {}

  template <typename T>
  STURDY_ALWAYS_INLINE T* take(int64_t count) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return block_ == nullptr ? nullptr : reinterpret_cast<T*>(block_ + at);
  }

  STURDY_ALWAYS_INLINE size_t used() const { return used_; }

 private:
  char* block_;
  size_t used_ = 0;
};

}  // namespace sturdy
