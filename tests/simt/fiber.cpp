#include "fiber.hpp"

#include <sys/mman.h>

#include <cstdint>

namespace simt {

#if defined(STURDY_SIMT_UCONTEXT)

// The portable way. It saves the signal mask by a system call at each switch and is about ten times slower.
void make_fiber(FiberContext& context, char* stack_low, size_t stack_bytes, void (*entry)()) {
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = stack_low;
  context.saved.uc_stack.ss_size = stack_bytes;
  context.saved.uc_link = nullptr;
  makecontext(&context.saved, entry, 0);
}

void switch_fiber(FiberContext& from, FiberContext& to) { swapcontext(&from.saved, &to.saved); }

#else

// System V x86-64: rbx, rbp and r12-r15 survive a call, so they are all that a switch must keep. The rounding modes
// (mxcsr, x87 control word) are never changed by kernels and are not saved.
extern "C" __attribute__((visibility("hidden"))) void sturdy_simt_switch_stack(void** save_stack_pointer,
                                                                               void* new_stack_pointer);
asm(R"(
.text
.hidden sturdy_simt_switch_stack
.globl sturdy_simt_switch_stack
.type sturdy_simt_switch_stack,@function
.align 16
sturdy_simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sturdy_simt_switch_stack,.-sturdy_simt_switch_stack
)");

void make_fiber(FiberContext& context, char* stack_low, size_t stack_bytes, void (*entry)()) {
  const uintptr_t top = reinterpret_cast<uintptr_t>(stack_low + stack_bytes) & ~uintptr_t{63};
  void** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;                         // return address of `entry`: none, and it ends every backtrace
  *--slot = reinterpret_cast<void*>(entry);  // where `ret` goes; leaves rsp as a call would
  for (int saved_register = 0; saved_register < 6; ++saved_register) {
    *--slot = nullptr;
  }
  context.stack_pointer = slot;
}

void switch_fiber(FiberContext& from, FiberContext& to) {
  sturdy_simt_switch_stack(&from.stack_pointer, to.stack_pointer);
}

#endif

bool StackPool::reserve(unsigned count) {
  if (count <= count_) {
    return true;
  }
  if (base_ != nullptr) {
    munmap(base_, count_ * stack_bytes);
    base_ = nullptr;
    count_ = 0;
  }
  void* mapping =
      mmap(nullptr, count * stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    return false;
  }
  base_ = static_cast<char*>(mapping);
  count_ = count;
  for (unsigned i = 0; i < count; ++i) {
    mprotect(base_ + i * stack_bytes, guard_bytes, PROT_NONE);
  }
  return true;
}

}  // namespace simt
