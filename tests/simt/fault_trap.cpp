#include "fault_trap.hpp"

#include <pthread.h>

#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define STURDY_SIMT_TRAPS_FAULTS 1
#include <ucontext.h>
#endif

namespace simt {

#if defined(STURDY_SIMT_TRAPS_FAULTS)

namespace {

alignas(64) char handler_stack[64 << 10];        // the handler's: the fiber's own may be what ran out
alignas(64) char continuation_stack[256 << 10];  // what runs after the handler returned
pthread_t watched_thread;
FaultContinuation fault_continuation = nullptr;
struct sigaction earlier_action[2];

// Does not leave by a jump: it changes where the interrupted code continues and returns in the ordinary way, so the
// kernel restores the signal mask.
void handle_fault(int signal_number, siginfo_t* info, void* interrupted) {
  ucontext_t& context = *static_cast<ucontext_t*>(interrupted);
  greg_t* registers = context.uc_mcontext.gregs;
  if (!pthread_equal(pthread_self(), watched_thread)) {
    sigaction(signal_number, &earlier_action[signal_number == SIGSEGV ? 0 : 1], nullptr);
    return;  // the instruction is tried again, faults again, and reaches the earlier handler
  }
  const uintptr_t top = reinterpret_cast<uintptr_t>(continuation_stack + sizeof continuation_stack);
  registers[REG_RDI] = reinterpret_cast<greg_t>(info->si_addr);
  registers[REG_RSI] = registers[REG_RIP];
  registers[REG_RDX] = registers[REG_RSP];
  registers[REG_RSP] = static_cast<greg_t>(top - 8);  // as a call would leave it
  registers[REG_RIP] = reinterpret_cast<greg_t>(fault_continuation);
}

}  // namespace

FaultTrap::FaultTrap(FaultContinuation continuation) {
  watched_thread = pthread_self();
  fault_continuation = continuation;
  stack_t stack{};
  stack.ss_sp = handler_stack;
  stack.ss_size = sizeof handler_stack;
  sigaltstack(&stack, &previous_stack_);
  struct sigaction action{};
  action.sa_sigaction = handle_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, &previous_segv_);
  sigaction(SIGBUS, &action, &previous_bus_);
  earlier_action[0] = previous_segv_;
  earlier_action[1] = previous_bus_;
}

FaultTrap::~FaultTrap() {
  sigaction(SIGSEGV, &previous_segv_, nullptr);
  sigaction(SIGBUS, &previous_bus_, nullptr);
  sigaltstack(&previous_stack_, nullptr);
}

#else

FaultTrap::FaultTrap(FaultContinuation) {}
FaultTrap::~FaultTrap() = default;

#endif

}  // namespace simt
