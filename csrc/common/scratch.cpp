#include "common/scratch.h"

#include <cstdlib>
#include <new>

namespace sturdy {
namespace {

// More than this is returned to the system at the end of a call. First touch of fresh pages is slow (about 5 GB/s),
// so what typical layers need is kept.
constexpr size_t kKeptBytes = size_t{64} << 20;

class Block {
 public:
  Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { release(); }

  void* reserve(size_t bytes) {
    if (bytes > size_) {
      release();
      const size_t rounded = (bytes + 4095) / 4096 * 4096;
      data_ = rounded < bytes ? nullptr : std::aligned_alloc(64, rounded);
      if (data_ == nullptr) {
        throw std::bad_alloc();
      }
      size_ = rounded;
    }
    return data_;
  }

  void trim() {
    if (size_ > kKeptBytes) {
      release();
    }
  }

 private:
  void release() {
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
  }

  void* data_ = nullptr;
  size_t size_ = 0;
};

Block& block(ScratchSlot slot) {
  thread_local Block blocks[4];
  return blocks[static_cast<int>(slot)];
}

}  // namespace

void* host_scratch(ScratchSlot slot, size_t bytes) { return block(slot).reserve(bytes == 0 ? 1 : bytes); }

void trim_host_scratch(ScratchSlot slot) { block(slot).trim(); }

}  // namespace sturdy
