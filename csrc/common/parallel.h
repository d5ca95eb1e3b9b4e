// Work split over the threads that the caller brought, or over the built-in pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <type_traits>

#include "common/types.h"
#include "sturdy/sturdy.h"

namespace sturdy {

// The built-in pool: made at first use, remade in a forked child, covers [0, n) in pieces of at least `grain`.
void pool_parallel_for(void* unused, int64_t n, int64_t grain, sturdy_body body, void* arg);
void set_pool_threads(int32_t n);
int32_t pool_threads();

// A handle on the threads of one call.
class Threads {
 public:
  explicit Threads(const sturdy_context* context)
      : pool_(context != nullptr && context->parallel_for != nullptr ? context->pool : nullptr),
        parallel_for_(context != nullptr && context->parallel_for != nullptr ? context->parallel_for
                                                                             : &pool_parallel_for) {}

  // Calls body(begin, end) on disjoint ranges that cover [0, n). A body that throws std::bad_alloc makes this
  // return out_of_memory; any other exception, internal_error. What a body computes for an index must depend on that
  // index alone, never on the range it came in.
  template <typename Body>
  Status operator()(int64_t n, int64_t grain, const Body& body) const {
    if (n <= 0) {
      return Status::ok;
    }
    struct Shared {
      const Body* body;
      std::atomic<Status> status;
    } shared{&body, {Status::ok}};
    auto run = [](void* arg, int64_t begin, int64_t end) {
      Shared& s = *static_cast<Shared*>(arg);
      try {
        (*s.body)(begin, end);
      } catch (const std::bad_alloc&) {
        s.status.store(Status::out_of_memory, std::memory_order_relaxed);
      } catch (...) {
        s.status.store(Status::internal_error, std::memory_order_relaxed);
      }
    };
    parallel_for_(pool_, n, grain, run, &shared);
    return shared.status.load(std::memory_order_relaxed);
  }

 private:
  void* pool_;
  void (*parallel_for_)(void*, int64_t, int64_t, sturdy_body, void*);
};

}  // namespace sturdy
