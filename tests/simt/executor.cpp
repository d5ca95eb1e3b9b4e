#include "executor.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <vector>

#include "executor_state.hpp"
#include "fault_trap.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx{};
uint3 blockIdx{};
dim3 blockDim{};
dim3 gridDim{};

namespace simt {

Observer* observer = nullptr;
volatile bool in_executor = true;
unsigned current_thread = 0;

Executor executor;

namespace {

constexpr size_t max_shared_bytes = size_t{227} << 10;  // of sm_90 and sm_100

std::mutex launch_mutex;

}  // namespace

uint64_t next_random() {  // xorshift64
  uint64_t& s = executor.random_state;
  s ^= s << 13;
  s ^= s >> 7;
  s ^= s << 17;
  return s;
}

std::string place(const Fiber& fiber) {
  char text[512];
  snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u) at %s %s:%d", fiber.index.x, fiber.index.y,
           fiber.index.z, blockIdx.x, blockIdx.y, blockIdx.z, fiber.operation != nullptr ? fiber.operation : "?",
           fiber.site.file != nullptr ? fiber.site.file : "?", fiber.site.line);
  return text;
}

bool same_site(const Fiber& a, const Fiber& b) {
  return a.site.line == b.site.line && (a.site.file == b.site.file || strcmp(a.site.file, b.site.file) == 0);
}

void set_error(const std::string& text) {
  if (!executor.failed) {
    executor.failed = true;
    executor.error = text;
  }
}

namespace {

// The place is looked up later, from the main context: that starts another program.
void set_error_at_instruction(const std::string& text, const void* instruction) {
  if (!executor.failed) {
    const uint3 thread = executor.current->index;
    char who[120];
    snprintf(who, sizeof who, " by thread (%u,%u,%u) of block (%u,%u,%u) at ", thread.x, thread.y, thread.z, blockIdx.x,
             blockIdx.y, blockIdx.z);
    set_error(text + who);
    executor.faulting_instruction = instruction;
  }
}

// ---- Turns ----------------------------------------------------------------------------------------------------------

void report_deadlock() {
  const std::string live = std::to_string(executor.live);
  std::string text = executor.at_block_barrier == 0
                         ? "deadlock: the " + live + " live threads wait for what cannot come"
                         : "deadlock: " + std::to_string(executor.at_block_barrier) + " of " + live +
                               " live threads wait at __syncthreads, the others elsewhere";
  // One example of each place where threads wait.
  std::vector<const Fiber*> shown;
  for (const Fiber& fiber : executor.fibers) {
    if (number_of(fiber) >= executor.threads || fiber.state == State::done || shown.size() == 6) {
      continue;
    }
    const bool known = std::any_of(shown.begin(), shown.end(), [&](const Fiber* other) {
      return other->operation == fiber.operation && same_site(*other, fiber);
    });
    if (!known) {
      shown.push_back(&fiber);
      text += "\n  waiting: " + place(fiber);
    }
  }
  set_error(text);
}

void start_round() {
  std::swap(executor.round, executor.upcoming);
  executor.upcoming->count = 0;
  executor.position = 0;
  if (executor.order == Order::random) {
    RunList& round = *executor.round;
    for (unsigned i = round.count; i > 1; --i) {
      std::swap(round.threads[i - 1], round.threads[next_random() % i]);
    }
    if (executor.async_engine != nullptr && (next_random() & 1) != 0) {
      executor.async_engine();
    }
  }
}

// The thread whose turn is next; null when the block is finished or cannot go on.
Fiber* next_thread() {
  while (executor.position == executor.round->count) {
    if (executor.upcoming->count == 0) {
      if (executor.live == 0) {
        return nullptr;
      }
      if (executor.async_engine != nullptr && executor.async_engine()) {
        continue;
      }
      report_deadlock();
      return nullptr;
    }
    start_round();
  }
  return &executor.fibers[executor.round->threads[executor.position++]];
}

void set_current(Fiber& fiber) {
  executor.current = &fiber;
  current_thread = number_of(fiber);
  threadIdx = fiber.index;
  executor.stats.switches++;
}

}  // namespace

// Continues the next thread, or the main context when there is none or an error was set. Returns when the calling
// thread has its turn again.
void suspend() {
  Fiber& self = *executor.current;
  Fiber* next = executor.failed ? nullptr : next_thread();
  if (executor.failed) {
    next = nullptr;
  }
  if (next == &self) {
    return;
  }
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const unsigned number = next != nullptr ? number_of(*next) : 0;
  __sanitizer_start_switch_fiber(self.state == State::done ? nullptr : &fake_stack,
                                 next != nullptr ? executor.stacks.low(number) : executor.main_stack_low,
                                 next != nullptr ? executor.stacks.size(number) : executor.main_stack_bytes);
#endif
  if (next != nullptr) {
    set_current(*next);
    switch_fiber(self.context, next->context);
  } else {
    switch_fiber(self.context, executor.main_context);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

namespace {

// A thread has ended: barriers no longer count on it, and nobody may wait for it in a warp.
void thread_exits(Fiber& self) {
  const unsigned number = number_of(self);
  const unsigned warp = number / 32;
  self.state = State::done;
  executor.live--;
  executor.exited[warp] |= 1u << number % 32;
  executor.fruitless_yields = 0;
  if (executor.arrived[warp] != 0) {
    const unsigned end = std::min(executor.threads, warp * 32 + 32);
    for (unsigned i = warp * 32; i < end; ++i) {
      const Fiber& other = executor.fibers[i];
      if (other.state == State::at_collective && (other.mask >> number % 32 & 1) != 0) {
        set_error("warp mask names an exited lane (" + std::to_string(number % 32) + "): " + place(other));
        return;
      }
    }
  }
  if (executor.live > 0 && executor.at_block_barrier == executor.live) {
    release_block_barrier();
  }
}

// The first function on every fiber's stack.
void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  const void* previous_low = nullptr;
  size_t previous_bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &previous_low, &previous_bytes);
  if (executor.main_stack_low == nullptr) {  // the first fiber of all is started from the main stack
    executor.main_stack_low = previous_low;
    executor.main_stack_bytes = previous_bytes;
  }
#endif
  try {
    in_executor = false;
    executor.body(executor.closure);
    in_executor = true;
  } catch (const std::exception& exception) {
    in_executor = true;
    set_error(std::string("the kernel threw an exception: ") + exception.what());
  } catch (...) {
    in_executor = true;
    set_error("the kernel threw an exception");
  }
  thread_exits(*executor.current);
  suspend();
  abort();  // a finished thread never gets another turn
}

// ---- Blocks and launches --------------------------------------------------------------------------------------------

void start_block(dim3 block, unsigned block_number) {
  executor.serial++;
  executor.live = executor.threads;
  executor.at_block_barrier = 0;
  executor.predicates = 0;
  executor.fruitless_yields = 0;
  executor.position = 0;
  executor.round->count = 0;
  executor.upcoming->count = 0;
  memset(executor.named, 0, sizeof executor.named);
  memset(executor.arrived, 0, sizeof executor.arrived);
  memset(executor.exited, 0, sizeof executor.exited);
  executor.shared.fill_with_poison();
  uint3 index{0, 0, 0};
  for (unsigned i = 0; i < executor.threads; ++i) {
    Fiber& fiber = executor.fibers[i];
    fiber.operation = nullptr;
    fiber.site = Site{nullptr, 0};
    fiber.index = index;
    if (++index.x == block.x) {
      index.x = 0;
      if (++index.y == block.y) {
        index.y = 0;
        ++index.z;
      }
    }
#if defined(__SANITIZE_ADDRESS__)
    // Frames of a thread that never returned are still marked.
    __asan_unpoison_memory_region(executor.stacks.low(i), executor.stacks.size(i));
#endif
    make_fiber(fiber.context, executor.stacks.low(i), executor.stacks.size(i), thread_main);
  }
  for_each_thread(0, executor.threads, make_ready);
  if (observer != nullptr) {
    observer->block_begins(block_number, executor.threads, executor.shared.begin(), executor.shared.end());
  }
}

void run_block(dim3 block, unsigned block_number) {
  start_block(block, block_number);
  Fiber* first = next_thread();
  set_current(*first);
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  executor.main_stack_low = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, executor.stacks.low(number_of(*first)),
                                 executor.stacks.size(number_of(*first)));
#endif
  switch_fiber(executor.main_context, first->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  in_executor = true;
  if (!executor.failed) {
    const ptrdiff_t stray = executor.shared.first_stray_write();
    if (stray != 0) {
      char text[200];
      snprintf(text, sizeof text,
               "out-of-bounds shared write: byte %td beside %zu bytes of dynamic shared memory, block (%u,%u,%u)",
               stray, static_cast<size_t>(executor.shared.end() - executor.shared.begin()), blockIdx.x, blockIdx.y,
               blockIdx.z);
      set_error(text);
    }
  }
}

std::string triple(dim3 size) {
  return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
}

std::string check_launch(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > max_threads || block.x > 1024 || block.y > 1024 || block.z > 64) {
    return "invalid launch: block " + triple(block) + " must have 1 to 1024 threads";
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return "invalid launch: grid " + triple(grid) + " must be at least 1 and at most (2147483647, 65535, 65535)";
  }
  if (shared_bytes > max_shared_bytes) {
    return "invalid launch: " + std::to_string(shared_bytes) + " bytes of dynamic shared memory, at most " +
           std::to_string(max_shared_bytes) + " exist";
  }
  return "";
}

// Where a fault on a fiber continues: on a stack of its own, since the fiber's may be what ran out.
void after_fault(const void* address, const void* instruction, const void* stack_pointer) {
  in_executor = true;
  const Fiber& fiber = *executor.current;
  char what[200];
  if (!executor.stacks.usable(number_of(fiber), stack_pointer) || executor.stacks.in_guard(address)) {
    snprintf(what, sizeof what, "stack overflow: the thread's local variables exceed %zu KiB",
             StackPool::stack_bytes >> 10);
  } else if (executor.shared.surrounds(address)) {
    snprintf(what, sizeof what, "out-of-bounds shared access: byte %td of %zu bytes of dynamic shared memory",
             static_cast<const char*>(address) - executor.shared.begin(),
             static_cast<size_t>(executor.shared.end() - executor.shared.begin()));
  } else {
    snprintf(what, sizeof what, "invalid memory access at %p", address);
  }
  set_error_at_instruction(what, instruction);
  FiberContext abandoned;
  switch_fiber(abandoned, executor.main_context);
}

void read_environment() {
  if (const char* order = getenv("STURDY_SIMT_ORDER")) {
    executor.order = strcmp(order, "reverse") == 0  ? Order::reverse
                     : strcmp(order, "random") == 0 ? Order::random
                                                    : Order::forward;
  }
  if (const char* seed = getenv("STURDY_SIMT_SEED")) {
    executor.seed = strtoull(seed, nullptr, 10);
  }
}

[[maybe_unused]] const bool environment_was_read = (read_environment(), true);

}  // namespace

std::string run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* closure) {
  if (executor.stacks.contains(__builtin_frame_address(0))) {
    fail("a kernel may not launch kernels");
  }
  const std::string invalid = check_launch(grid, block, shared_bytes);
  if (!invalid.empty()) {
    return invalid;
  }
  const std::lock_guard<std::mutex> lock(launch_mutex);
  executor.threads = block.x * block.y * block.z;
  if (!executor.stacks.reserve(executor.threads) || !executor.shared.reserve()) {
    return "out of memory for the stacks of the executor";
  }
  if (executor.fibers.size() < executor.threads) {
    executor.fibers.resize(executor.threads);
  }
  executor.shared.resize(shared_bytes);
  executor.body = body;
  executor.closure = closure;
  executor.failed = false;
  executor.error.clear();
  executor.faulting_instruction = nullptr;
  executor.random_state = executor.seed * 0x9E3779B97F4A7C15ull + 1;
  blockDim = block;
  gridDim = grid;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  executor.stats.launches++;
  if (observer != nullptr) {
    const char* stacks = executor.stacks.low(0) - 4096;
    observer->launch_begins(MemoryMap{stacks, stacks + executor.fibers.size() * StackPool::stack_bytes,
                                      executor.shared.mapping_begin(), executor.shared.mapping_end()});
  }
  {
    const FaultTrap trap(after_fault);
    const uint64_t rotation = executor.order == Order::random ? next_random() % blocks : 0;
    for (uint64_t i = 0; i < blocks && !executor.failed; ++i) {
      const uint64_t k = executor.order == Order::reverse ? blocks - 1 - i : (i + rotation) % blocks;
      blockIdx.x = static_cast<unsigned>(k % grid.x);
      blockIdx.y = static_cast<unsigned>(k / grid.x % grid.y);
      blockIdx.z = static_cast<unsigned>(k / (uint64_t{grid.x} * grid.y));
      executor.stats.blocks++;
      executor.stats.threads += executor.threads;
      run_block(block, static_cast<unsigned>(k));
    }
  }
  if (executor.faulting_instruction != nullptr) {
    executor.error += describe_code(executor.faulting_instruction);
  }
  if (observer != nullptr) {
    observer->launch_ends();
  }
  executor.current = nullptr;
  return executor.error;
}

void* dynamic_shared() { return executor.shared.begin(); }

void fail(const std::string& what_went_wrong) {
  in_executor = true;
  set_error(what_went_wrong);
  suspend();
  abort();
}

void fail_at(const std::string& what_went_wrong, const char* operation, Site site) {
  in_executor = true;
  executor.current->operation = operation;
  executor.current->site = site;
  fail(what_went_wrong + ": " + place(*executor.current));
}

void fail_at_instruction(const std::string& what_went_wrong, const void* instruction) {
  in_executor = true;
  set_error_at_instruction(what_went_wrong, instruction);
  suspend();
  abort();
}

void set_async_engine(bool (*do_one_piece)()) { executor.async_engine = do_one_piece; }

uint64_t block_serial() { return executor.serial; }

}  // namespace simt

// ---- What tests call ------------------------------------------------------------------------------------------------

#define STURDY_SIMT_EXPORT extern "C" __attribute__((visibility("default")))

// order: 0 forward, 1 reverse, 2 random. Returns 0, or -1 for another number. Not while a kernel runs.
STURDY_SIMT_EXPORT int sturdy_simt_set_order(int order, uint64_t seed) {
  if (order < 0 || order > 2) {
    return -1;
  }
  const std::lock_guard<std::mutex> lock(simt::launch_mutex);
  simt::executor.order = static_cast<simt::Order>(order);
  simt::executor.seed = seed;
  return 0;
}

// Fills in launches, blocks, threads, switches, block barriers, warp collectives since the library was loaded.
STURDY_SIMT_EXPORT void sturdy_simt_stats(uint64_t counts[6]) {
  const std::lock_guard<std::mutex> lock(simt::launch_mutex);
  static_assert(sizeof(simt::Stats) == 6 * sizeof(uint64_t), "counts are copied as they lie");
  memcpy(counts, &simt::executor.stats, sizeof(simt::Stats));
}
