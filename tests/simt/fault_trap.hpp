// Turns a memory fault inside a kernel into an error of the launch instead of the end of the process.
#pragma once

#include <signal.h>

namespace simt {

// Called on a stack of its own with the address that faulted, the instruction that did it, and the stack pointer it
// had. Must not return.
using FaultContinuation = void (*)(const void* address, const void* instruction, const void* stack_pointer);

// While it lives, SIGSEGV and SIGBUS of the thread that made it continue in `continuation`; those of other threads go
// to whoever handled them before. One at a time. Does nothing on machines other than x86-64 Linux, or under
// AddressSanitizer, which explains faults itself.
class FaultTrap {
 public:
  explicit FaultTrap(FaultContinuation continuation);
  ~FaultTrap();
  FaultTrap(const FaultTrap&) = delete;
  FaultTrap& operator=(const FaultTrap&) = delete;

 private:
  struct sigaction previous_segv_;
  struct sigaction previous_bus_;
  stack_t previous_stack_;
};

}  // namespace simt
