// Where threads wait for one another: barriers, warp collectives, sleep and wake, spinning.
#include <algorithm>
#include <string>

#include "executor_state.hpp"

namespace simt {
namespace {

constexpr unsigned max_rounds_of_spinning = 1000;

}  // namespace

void release_block_barrier() {
  const Fiber* first = nullptr;
  for_each_thread(0, executor.threads, [&](Fiber& fiber) {
    if (fiber.state != State::at_block_barrier) {
      return;
    }
    if (first == nullptr) {
      first = &fiber;
    } else if (!same_site(*first, fiber)) {
      set_error("barrier divergence: threads of one block meet at different __syncthreads\n  " + place(*first) +
                "\n  " + place(fiber));
    }
    make_ready(fiber);
  });
  executor.at_block_barrier = 0;
  executor.predicate_result = executor.predicates;
  executor.predicates = 0;
  executor.fruitless_yields = 0;
  executor.stats.block_barriers++;
  if (observer != nullptr) {
    observer->block_barrier();
  }
}

unsigned block_barrier(bool predicate, const char* operation, Site site) {
  const ExecutorScope scope;
  Fiber& self = *executor.current;
  self.state = State::at_block_barrier;
  self.operation = operation;
  self.site = site;
  executor.predicates += predicate ? 1 : 0;
  executor.at_block_barrier++;
  if (executor.at_block_barrier == executor.live) {
    release_block_barrier();
  }
  suspend();
  return executor.predicate_result;
}

void named_barrier(unsigned id, unsigned threads, bool wait, const char* operation, Site site) {
  const ExecutorScope scope;
  Fiber& self = *executor.current;
  if (id == 0 || id >= max_named_barriers) {
    fail_at("named barriers are numbered 1 to 15, got " + std::to_string(id), operation, site);
  }
  if (threads == 0 || threads % 32 != 0) {
    fail_at("a named barrier needs a multiple of 32 threads, got " + std::to_string(threads), operation, site);
  }
  NamedBarrier& barrier = executor.named[id];
  if (barrier.arrived == 0) {
    barrier.expected = threads;
  } else if (barrier.expected != threads) {
    fail_at("threads disagree on the size of named barrier " + std::to_string(id), operation, site);
  }
  barrier.arrived++;
  if (observer != nullptr) {
    observer->release(number_of(self), &barrier);
  }
  if (wait) {
    self.state = State::at_named_barrier;
    self.barrier = static_cast<uint8_t>(id);
    self.operation = operation;
    self.site = site;
  }
  if (barrier.arrived == barrier.expected) {
    for_each_thread(0, executor.threads, [&](Fiber& fiber) {
      if (fiber.state == State::at_named_barrier && fiber.barrier == id) {
        make_ready(fiber);
        if (observer != nullptr) {
          observer->acquire(number_of(fiber), &barrier);
        }
      }
    });
    barrier.arrived = 0;
    executor.fruitless_yields = 0;
    if (observer != nullptr) {
      observer->forget(&barrier);
    }
  }
  if (wait) {
    suspend();
  }
}

namespace {

// Completes the collective that `self` waits at, if all its lanes are there.
void try_collective(Fiber& self, unsigned warp) {
  void* payloads[32] = {};
  const unsigned first = warp * 32;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((self.mask >> lane & 1) == 0) {
      continue;
    }
    Fiber& other = executor.fibers[first + lane];
    if (other.state != State::at_collective || other.mask != self.mask) {
      return;
    }
    if (other.combine != self.combine) {
      fail("different warp collectives meet on one mask\n  " + place(self) + "\n  " + place(other));
    }
    if (self.kind == CollectiveKind::whole_warp && !same_site(self, other)) {
      fail("the lanes of a warp execute a warp-wide instruction at different places\n  " + place(self) + "\n  " +
           place(other));
    }
    payloads[lane] = other.payload;
  }
  if (self.combine != nullptr) {
    self.combine(payloads, self.mask);
  }
  if (self.kind == CollectiveKind::orders_memory && observer != nullptr) {
    observer->synchronise(first, self.mask);
  }
  const uint32_t mask = self.mask;
  executor.arrived[warp] &= ~mask;
  for_each_thread(first, std::min(32u, executor.threads - first), [&](Fiber& fiber) {
    if ((mask >> number_of(fiber) % 32 & 1) != 0) {
      make_ready(fiber);
    }
  });
  executor.fruitless_yields = 0;
  executor.stats.collectives++;
}

}  // namespace

void collective(uint32_t mask, Combine combine, void* payload, CollectiveKind kind, const char* operation, Site site) {
  const ExecutorScope scope;
  Fiber& self = *executor.current;
  const unsigned number = number_of(self);
  const unsigned warp = number / 32;
  const unsigned lane = number % 32;
  const unsigned lanes = std::min(32u, executor.threads - warp * 32);
  const uint32_t existing = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  if ((mask >> lane & 1) == 0) {
    fail_at("the warp mask leaves out the calling lane", operation, site);
  }
  if (kind == CollectiveKind::whole_warp && existing != 0xffffffffu) {
    fail_at("a warp-wide instruction needs all 32 lanes", operation, site);
  }
  self.operation = operation;
  self.site = site;
  self.mask = mask & existing;  // a last warp that is not full: lanes that never were are not waited for
  self.combine = combine;
  self.payload = payload;
  self.kind = kind;
  self.state = State::at_collective;
  if ((executor.exited[warp] & self.mask) != 0) {
    fail("warp mask names an exited lane (" + std::to_string(__builtin_ctz(executor.exited[warp] & self.mask)) +
         "): " + place(self));
  }
  executor.arrived[warp] |= 1u << lane;
  if ((executor.arrived[warp] & self.mask) == self.mask) {
    try_collective(self, warp);
  }
  suspend();
}

void sleep_on(const void* object, const char* operation, Site site) {
  const ExecutorScope scope;
  Fiber& self = *executor.current;
  self.state = State::asleep;
  self.object = object;
  self.operation = operation;
  self.site = site;
  suspend();
}

void wake(const void* object) {
  executor.fruitless_yields = 0;
  for_each_thread(0, executor.threads, [&](Fiber& fiber) {
    if (fiber.state == State::asleep && fiber.object == object) {
      make_ready(fiber);
    }
  });
}

void yield_thread(const char* operation, Site site) {
  const ExecutorScope scope;
  Fiber& self = *executor.current;
  self.operation = operation;
  self.site = site;
  if (++executor.fruitless_yields > uint64_t{max_rounds_of_spinning} * executor.live) {
    fail("livelock: the threads that can run only spin\n  " + place(self));
  }
  make_ready(self);
  suspend();
}

void note_progress() { executor.fruitless_yields = 0; }

void note_fruitless_atomic(Site site) {
  constexpr unsigned atomics_between_turns = 64;
  if (++executor.fruitless_atomics >= atomics_between_turns) {
    executor.fruitless_atomics = 0;
    yield_thread("an atomic in a loop", site);
  }
}

bool coin() { return executor.order == Order::random && (next_random() & 1) != 0; }

void require_aligned(const void* address, size_t bytes, const char* operation, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail_at("address is not " + std::to_string(bytes) + "-byte aligned", operation, site);
  }
}

}  // namespace simt
