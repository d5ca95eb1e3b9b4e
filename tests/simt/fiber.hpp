// Stackful fibers: the switch itself and the stacks. One CUDA thread of the executor is one fiber.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(STURDY_SIMT_UCONTEXT)
#define STURDY_SIMT_UCONTEXT 1
#endif

#if defined(STURDY_SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

// Where a fiber continues when it is switched to.
struct FiberContext {
#if defined(STURDY_SIMT_UCONTEXT)
  ucontext_t saved;
#else
  void* stack_pointer = nullptr;  // the callee-saved registers lie on the fiber's own stack
#endif
};

// Prepares a context that starts `entry` on the given stack. `entry` must never return.
void make_fiber(FiberContext& context, char* stack_low, size_t stack_bytes, void (*entry)());

// Saves the caller's state in `from` and continues `to`.
void switch_fiber(FiberContext& from, FiberContext& to);

// One mapping that holds `count` stacks of `stack_bytes` each. The lowest page of each is a guard: running over the end
// of a stack faults instead of reaching its neighbour.
class StackPool {
 public:
  static constexpr size_t stack_bytes = size_t{64} << 10;

  // Makes room for at least `count` stacks. Old stacks are unmapped, so no fiber may be alive. False: out of memory.
  bool reserve(unsigned count);
  // The usable part of a stack. Tops are staggered, since equal offsets would all compete for one cache set.
  char* low(unsigned index) const { return base_ + index * stack_bytes + guard_bytes; }
  size_t size(unsigned index) const { return stack_bytes - guard_bytes - (index % 31) * 128; }
  bool contains(const void* address) const {
    return static_cast<const char*>(address) >= base_ &&
           static_cast<const char*>(address) < base_ + count_ * stack_bytes;
  }
  bool usable(unsigned index, const void* address) const {
    return address >= low(index) && address < low(index) + size(index);
  }
  // True for an address in the guard page of some stack.
  bool in_guard(const void* address) const {
    return contains(address) && (static_cast<const char*>(address) - base_) % stack_bytes < guard_bytes;
  }

 private:
  static constexpr size_t guard_bytes = 4096;

  char* base_ = nullptr;
  size_t count_ = 0;
};

}  // namespace simt
