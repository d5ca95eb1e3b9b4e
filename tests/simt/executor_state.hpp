// What the parts of the executor share among themselves: its state, and how threads get their turns. For executor.cpp
// and rendezvous.cpp only; kernels and twins see executor.hpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "block_shared_memory.hpp"
#include "executor.hpp"
#include "fiber.hpp"

namespace simt {

inline constexpr unsigned max_threads = 1024;
inline constexpr unsigned max_named_barriers = 16;

enum class State : uint8_t { ready, at_block_barrier, at_named_barrier, at_collective, asleep, done };

struct Fiber {
  FiberContext context;
  State state;
  CollectiveKind kind;
  uint8_t barrier;
  uint32_t mask;
  Combine combine;
  void* payload;
  const void* object;     // of sleep_on
  const char* operation;  // where the thread waits, for messages
  Site site;
  uint3 index;
};

// Threads that can run, in the order of their turns. A thread is in at most one of two such lists, once.
struct RunList {
  uint16_t threads[max_threads];
  unsigned count = 0;

  void push(unsigned thread) { threads[count++] = static_cast<uint16_t>(thread); }
};

struct NamedBarrier {
  unsigned arrived;
  unsigned expected;
};

// All that a launch needs. There is one, used by one launch at a time: nothing here is thread-local, so that kernels
// read threadIdx as fast as any global, and a library that is loaded late needs no room in the static thread block.
struct Executor {
  // Settings.
  Order order = Order::forward;
  uint64_t seed = 1;
  bool (*async_engine)() = nullptr;
  Stats stats{};

  // The launch.
  void (*body)(void*) = nullptr;
  void* closure = nullptr;
  std::string error;
  bool failed = false;
  const void* faulting_instruction = nullptr;
  FiberContext main_context;
  StackPool stacks;
  SharedMemory shared;
  uint64_t random_state = 1;
  uint64_t serial = 0;

  // The block.
  std::vector<Fiber> fibers;
  unsigned threads = 0;
  unsigned live = 0;
  Fiber* current = nullptr;
  RunList lists[2];
  RunList* round = &lists[0];
  RunList* upcoming = &lists[1];
  unsigned position = 0;          // in round
  unsigned at_block_barrier = 0;  // how many threads wait there
  unsigned predicates = 0;        // how many of them brought true
  unsigned predicate_result = 0;
  uint64_t fruitless_yields = 0;
  unsigned fruitless_atomics = 0;
  NamedBarrier named[max_named_barriers];
  uint32_t arrived[max_threads / 32];  // lanes at some collective, by warp
  uint32_t exited[max_threads / 32];

#if defined(__SANITIZE_ADDRESS__)
  const void* main_stack_low = nullptr;
  size_t main_stack_bytes = 0;
#endif
};

STURDY_SIMT_HIDDEN extern Executor executor;

// ---- Turns ----------------------------------------------------------------------------------------------------------

// Continues the next thread, or the main context when there is none or an error was set. Returns when the calling
// thread has its turn again.
void suspend();

// Called when all live threads have come to the block barrier.
void release_block_barrier();

uint64_t next_random();

// The first error of a launch is the one that is told. It ends the launch at the next suspend().
void set_error(const std::string& text);

// Where a thread is, in words.
std::string place(const Fiber& fiber);
bool same_site(const Fiber& a, const Fiber& b);

inline unsigned number_of(const Fiber& fiber) { return static_cast<unsigned>(&fiber - executor.fibers.data()); }

inline void make_ready(Fiber& fiber) {
  fiber.state = State::ready;
  executor.upcoming->push(number_of(fiber));
}

// Calls visit(fiber) for threads first .. first + count - 1 in the order of turns.
template <typename Visit>
void for_each_thread(unsigned first, unsigned count, const Visit& visit) {
  Fiber* fibers = executor.fibers.data() + first;
  if (executor.order == Order::reverse) {
    for (unsigned i = count; i-- > 0;) {
      visit(fibers[i]);
    }
  } else {
    for (unsigned i = 0; i < count; ++i) {
      visit(fibers[i]);
    }
  }
}

}  // namespace simt
