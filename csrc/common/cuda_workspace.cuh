// Device scratch that a caller provides in one piece.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sturdy {

// Cuts a workspace into aligned pieces; with no base it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <typename Element>
  Element* take(int64_t count) {
    const uintptr_t at = base_ + bytes_;
    bytes_ += (static_cast<size_t>(count) * sizeof(Element) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<Element*>(at);
  }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kAlignment = 256;
  uintptr_t base_;
  size_t bytes_ = 0;
};

}  // namespace sturdy
