// The functions that code compiled with -fsanitize=thread calls. They stand in for the sanitizer's runtime, which is
// not linked: plain accesses go to the race checker, C++ atomics (in host code that shares a file with kernels) are
// simply done, and the rest has nothing to do.
#include <cstddef>
#include <cstdint>

#include "observer.hpp"

namespace simt {
void instrumented_access(const void* address, size_t bytes, Access kind, const void* return_address);
}

#define STURDY_CALLER __builtin_return_address(0)

#define STURDY_ACCESS_HOOKS(bytes)                                                 \
  void __tsan_read##bytes(void* address) {                                         \
    simt::instrumented_access(address, bytes, simt::Access::read, STURDY_CALLER);  \
  }                                                                                \
  void __tsan_write##bytes(void* address) {                                        \
    simt::instrumented_access(address, bytes, simt::Access::write, STURDY_CALLER); \
  }                                                                                \
  void __tsan_unaligned_read##bytes(void* address) {                               \
    simt::instrumented_access(address, bytes, simt::Access::read, STURDY_CALLER);  \
  }                                                                                \
  void __tsan_unaligned_write##bytes(void* address) {                              \
    simt::instrumented_access(address, bytes, simt::Access::write, STURDY_CALLER); \
  }

#define STURDY_ATOMIC_HOOKS(bits)                                                                                   \
  using Atomic##bits = uint##bits##_t;                                                                              \
  Atomic##bits __tsan_atomic##bits##_load(const volatile Atomic##bits* a, int) {                                    \
    return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                                                    \
  }                                                                                                                 \
  void __tsan_atomic##bits##_store(volatile Atomic##bits* a, Atomic##bits v, int) {                                 \
    __atomic_store_n(a, v, __ATOMIC_SEQ_CST);                                                                       \
  }                                                                                                                 \
  Atomic##bits __tsan_atomic##bits##_exchange(volatile Atomic##bits* a, Atomic##bits v, int) {                      \
    return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST);                                                             \
  }                                                                                                                 \
  Atomic##bits __tsan_atomic##bits##_fetch_add(volatile Atomic##bits* a, Atomic##bits v, int) {                     \
    return __atomic_fetch_add(a, v, __ATOMIC_SEQ_CST);                                                              \
  }                                                                                                                 \
  Atomic##bits __tsan_atomic##bits##_fetch_sub(volatile Atomic##bits* a, Atomic##bits v, int) {                     \
    return __atomic_fetch_sub(a, v, __ATOMIC_SEQ_CST);                                                              \
  }                                                                                                                 \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile Atomic##bits* a, Atomic##bits* e, Atomic##bits v, int, \
                                                    int) {                                                          \
    return __atomic_compare_exchange_n(a, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                         \
  }                                                                                                                 \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile Atomic##bits* a, Atomic##bits* e, Atomic##bits v, int,   \
                                                  int) {                                                            \
    return __atomic_compare_exchange_n(a, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                         \
  }

extern "C" {

STURDY_ACCESS_HOOKS(1)
STURDY_ACCESS_HOOKS(2)
STURDY_ACCESS_HOOKS(4)
STURDY_ACCESS_HOOKS(8)
STURDY_ACCESS_HOOKS(16)

void __tsan_read_range(void* address, size_t bytes) {
  simt::instrumented_access(address, bytes, simt::Access::read, STURDY_CALLER);
}
void __tsan_write_range(void* address, size_t bytes) {
  simt::instrumented_access(address, bytes, simt::Access::write, STURDY_CALLER);
}

STURDY_ATOMIC_HOOKS(8)
STURDY_ATOMIC_HOOKS(16)
STURDY_ATOMIC_HOOKS(32)
STURDY_ATOMIC_HOOKS(64)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

}  // extern "C"
