// The dynamic shared memory of a block.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

// The address space around a block's dynamic shared memory: guard page, pool, guard page. The memory lies at the upper
// end of the pool, so that running past it faults. The few bytes lost to alignment, and some before it, hold the poison
// too, and are looked at after the block.
class SharedMemory {
 public:
  static constexpr size_t alignment = 128;
  static constexpr size_t pool_bytes = size_t{256} << 10;
  static constexpr size_t page_bytes = 4096;
  static constexpr unsigned char poison = 0xFF;

  bool reserve() {
    if (mapping_ != nullptr) {
      return true;
    }
    void* mapping = mmap(nullptr, pool_bytes + 2 * page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
      return false;
    }
    mapping_ = static_cast<char*>(mapping);
    return mprotect(mapping_ + page_bytes, pool_bytes, PROT_READ | PROT_WRITE) == 0;
  }

  void resize(size_t bytes) {
    bytes_ = bytes;
    data_ = pool_end() - (bytes + alignment - 1) / alignment * alignment;
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(pool_end() - pool_bytes, pool_bytes);
    __asan_unpoison_memory_region(data_, bytes_);
#else
    memset(data_ - alignment, poison, alignment);
    memset(data_ + bytes_, poison, pool_end() - (data_ + bytes_));
#endif
  }

  void fill_with_poison() { memset(data_, poison, bytes_); }

  // The first byte beside the memory that somebody wrote to, as an offset; 0 means none (no byte beside it has it).
  ptrdiff_t first_stray_write() const {
#if !defined(__SANITIZE_ADDRESS__)
    for (const char* p = data_ - alignment; p < data_; ++p) {
      if (static_cast<unsigned char>(*p) != poison) {
        return p - data_;
      }
    }
    for (const char* p = data_ + bytes_; p < pool_end(); ++p) {
      if (static_cast<unsigned char>(*p) != poison) {
        return p - data_;
      }
    }
#endif
    return 0;
  }

  char* begin() const { return data_; }
  char* end() const { return data_ + bytes_; }
  const char* mapping_begin() const { return mapping_; }
  const char* mapping_end() const { return mapping_ + pool_bytes + 2 * page_bytes; }
  bool surrounds(const void* address) const { return address >= mapping_begin() && address < mapping_end(); }

 private:
  char* pool_end() const { return mapping_ + page_bytes + pool_bytes; }

  char* mapping_ = nullptr;
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace simt
