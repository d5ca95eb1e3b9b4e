// The part of CUDA's device API that kernels use, for kernels compiled by an ordinary compiler and run by executor.hpp.
//
// Names and behaviour are those of the CUDA C++ programming guide. What is missing here is missing on purpose or not
// yet needed: a kernel that uses it does not compile, rather than doing something else. __activemask() is left out for
// good, because right code cannot depend on its value.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "executor.hpp"

// Blocks run one at a time on one OS thread, so a static array that is thread-local to that thread is shared by exactly
// the threads of a block. (Thread-local rather than plain, so that the race checker knows it by its address.)
#undef __shared__
#define __shared__ static thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)

using std::max;
using std::min;

// ---- Synchronisation ------------------------------------------------------------------------------------------------

inline void __syncthreads(STURDY_SIMT_SITE) { simt::block_barrier(false, "__syncthreads", site); }

inline int __syncthreads_count(int predicate, STURDY_SIMT_SITE) {
  return static_cast<int>(simt::block_barrier(predicate != 0, "__syncthreads_count", site));
}

inline int __syncthreads_or(int predicate, STURDY_SIMT_SITE) {
  return simt::block_barrier(predicate != 0, "__syncthreads_or", site) != 0;
}

inline int __syncthreads_and(int predicate, STURDY_SIMT_SITE) {
  return simt::block_barrier(predicate == 0, "__syncthreads_and", site) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, STURDY_SIMT_SITE) {
  simt::collective(mask, nullptr, nullptr, simt::CollectiveKind::orders_memory, "__syncwarp", site);
}

// Memory is sequentially consistent here: fences have nothing to do.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

inline void __nanosleep(unsigned, STURDY_SIMT_SITE) { simt::yield_thread("__nanosleep", site); }

[[noreturn]] inline void __trap(STURDY_SIMT_SITE) { simt::fail_at("the kernel called __trap", "__trap", site); }

// ---- Warp shuffles and votes ----------------------------------------------------------------------------------------

namespace simt {

template <typename T>
constexpr bool can_be_shuffled = std::is_arithmetic_v<T> || std::is_same_v<T, __half> || std::is_same_v<T, __half2> ||
                                 std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __nv_bfloat162>;

template <typename T>
struct Shuffle {
  T value;
  T result;
  unsigned source_lane;
};

// A lane that reads from one outside the mask gets an undefined value: here, all bits set.
template <typename T>
void combine_shuffle(void* const* payloads, uint32_t lanes) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((lanes >> lane & 1) == 0) {
      continue;
    }
    auto* own = static_cast<Shuffle<T>*>(payloads[lane]);
    if ((lanes >> own->source_lane & 1) == 0) {
      memset(static_cast<void*>(&own->result), 0xFF, sizeof(T));
    } else {
      own->result = static_cast<Shuffle<T>*>(payloads[own->source_lane])->value;
    }
  }
}

template <typename T>
T shuffle(unsigned mask, T value, unsigned source_lane, const char* operation, Site site) {
  static_assert(can_be_shuffled<T>, "CUDA shuffles numbers of 2, 4 and 8 bytes");
  Shuffle<T> payload{value, value, source_lane};
  collective(mask, combine_shuffle<T>, &payload, CollectiveKind::plain, operation, site);
  return payload.result;
}

struct Vote {
  bool predicate;
  uint32_t result;
};

inline void combine_ballot(void* const* payloads, uint32_t lanes) {
  uint32_t ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((lanes >> lane & 1) != 0 && static_cast<Vote*>(payloads[lane])->predicate) {
      ballot |= 1u << lane;
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((lanes >> lane & 1) != 0) {
      static_cast<Vote*>(payloads[lane])->result = ballot;
    }
  }
}

inline uint32_t vote(unsigned mask, bool predicate, const char* operation, Site site) {
  Vote payload{predicate, 0};
  collective(mask, combine_ballot, &payload, CollectiveKind::plain, operation, site);
  return payload.result;
}

}  // namespace simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int source_lane, int width = 32, STURDY_SIMT_SITE) {
  const int segment = static_cast<int>(simt::current_lane()) & ~(width - 1);
  return simt::shuffle(mask, value, segment | (source_lane & (width - 1)), "__shfl_sync", site);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, STURDY_SIMT_SITE) {
  const int lane = static_cast<int>(simt::current_lane());
  const int partner = lane ^ lane_mask;
  const bool beyond = (partner & ~(width - 1)) > (lane & ~(width - 1));
  return simt::shuffle(mask, value, beyond ? lane : partner, "__shfl_xor_sync", site);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, STURDY_SIMT_SITE) {
  const int lane = static_cast<int>(simt::current_lane());
  const bool inside = (lane & (width - 1)) + static_cast<int>(delta) < width;
  return simt::shuffle(mask, value, inside ? lane + static_cast<int>(delta) : lane, "__shfl_down_sync", site);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, STURDY_SIMT_SITE) {
  const int lane = static_cast<int>(simt::current_lane());
  const bool inside = (lane & (width - 1)) >= static_cast<int>(delta);
  return simt::shuffle(mask, value, inside ? lane - static_cast<int>(delta) : lane, "__shfl_up_sync", site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, STURDY_SIMT_SITE) {
  return simt::vote(mask, predicate != 0, "__ballot_sync", site);
}

inline int __any_sync(unsigned mask, int predicate, STURDY_SIMT_SITE) {
  return simt::vote(mask, predicate != 0, "__any_sync", site) != 0;
}

inline int __all_sync(unsigned mask, int predicate, STURDY_SIMT_SITE) {
  return simt::vote(mask, predicate == 0, "__all_sync", site) == 0;
}

// ---- Atomics --------------------------------------------------------------------------------------------------------

namespace simt {

// Threads take turns only at rendezvous, so nothing comes between the load and the store.
template <typename T, typename Change>
__attribute__((no_sanitize("thread"))) T read_modify_write(T* address, const Change& change, Site site) {
  if (observer != nullptr) {
    observer->access(address, sizeof(T), Access::atomic, site, current_thread);
  }
  const T before = *address;
  const T after = change(before);
  *address = after;
  if (memcmp(&before, &after, sizeof(T)) == 0) {
    note_fruitless_atomic(site);
  } else {
    note_progress();
  }
  return before;
}

// Keeps a parameter out of template argument deduction: atomicAdd(float*, 1) is right CUDA.
template <typename T>
struct Identity {
  using type = T;
};
template <typename T>
using NotDeduced = typename Identity<T>::type;

}  // namespace simt

template <typename T>
T atomicAdd(T* address, simt::NotDeduced<T> value, STURDY_SIMT_SITE) {
  return simt::read_modify_write(address, [value](T old) { return static_cast<T>(old + value); }, site);
}

template <typename T>
T atomicSub(T* address, simt::NotDeduced<T> value, STURDY_SIMT_SITE) {
  return simt::read_modify_write(address, [value](T old) { return static_cast<T>(old - value); }, site);
}

template <typename T>
T atomicMax(T* address, simt::NotDeduced<T> value, STURDY_SIMT_SITE) {
  static_assert(std::is_integral_v<T>, "CUDA has atomicMax for integers only");
  return simt::read_modify_write(address, [value](T old) { return old < value ? value : old; }, site);
}

template <typename T>
T atomicMin(T* address, simt::NotDeduced<T> value, STURDY_SIMT_SITE) {
  static_assert(std::is_integral_v<T>, "CUDA has atomicMin for integers only");
  return simt::read_modify_write(address, [value](T old) { return value < old ? value : old; }, site);
}

template <typename T>
T atomicExch(T* address, simt::NotDeduced<T> value, STURDY_SIMT_SITE) {
  return simt::read_modify_write(address, [value](T) { return value; }, site);
}

template <typename T>
T atomicOr(T* address, simt::NotDeduced<T> value, STURDY_SIMT_SITE) {
  return simt::read_modify_write(address, [value](T old) { return static_cast<T>(old | value); }, site);
}

template <typename T>
T atomicAnd(T* address, simt::NotDeduced<T> value, STURDY_SIMT_SITE) {
  return simt::read_modify_write(address, [value](T old) { return static_cast<T>(old & value); }, site);
}

template <typename T>
T atomicXor(T* address, simt::NotDeduced<T> value, STURDY_SIMT_SITE) {
  return simt::read_modify_write(address, [value](T old) { return static_cast<T>(old ^ value); }, site);
}

template <typename T>
T atomicCAS(T* address, simt::NotDeduced<T> expected, simt::NotDeduced<T> value, STURDY_SIMT_SITE) {
  return simt::read_modify_write(address, [=](T old) { return old == expected ? value : old; }, site);
}

inline unsigned atomicInc(unsigned* address, unsigned limit, STURDY_SIMT_SITE) {
  return simt::read_modify_write(address, [limit](unsigned old) { return old >= limit ? 0u : old + 1; }, site);
}

inline unsigned atomicDec(unsigned* address, unsigned limit, STURDY_SIMT_SITE) {
  return simt::read_modify_write(
      address, [limit](unsigned old) { return old == 0 || old > limit ? limit : old - 1; }, site);
}

// ---- Memory hints ---------------------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, simt::NotDeduced<T> value) {
  *address = value;
}
template <typename T>
void __stcg(T* address, simt::NotDeduced<T> value) {
  *address = value;
}

// ---- Integers and bits
// ------------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x != 0 ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x != 0 ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) {
    reversed |= (x >> bit & 1) << (31 - bit);
  }
  return reversed;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return result;
}

namespace simt {
template <typename To, typename From>
To bit_cast(const From& value) {
  static_assert(sizeof(To) == sizeof(From), "the sizes must agree");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}
}  // namespace simt

inline float __uint_as_float(unsigned x) { return simt::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return simt::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return simt::bit_cast<float>(x); }
inline int __float_as_int(float x) { return simt::bit_cast<int>(x); }
inline double __longlong_as_double(long long x) { return simt::bit_cast<double>(x); }
inline long long __double_as_longlong(double x) { return simt::bit_cast<long long>(x); }

// ---- Arithmetic. Intrinsics that are less exact on the GPU are exact here.
// -----------------------------------------------

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline void __sincosf(float x, float* sine, float* cosine) {
  *sine = sinf(x);
  *cosine = cosf(x);
}
inline float sinpif(float x) { return static_cast<float>(sin(M_PI * fmod(static_cast<double>(x), 2.0))); }
inline float cospif(float x) { return static_cast<float>(cos(M_PI * fmod(static_cast<double>(x), 2.0))); }
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = sinpif(x);
  *cosine = cospif(x);
}
inline double sinpi(double x) { return sin(M_PI * fmod(x, 2.0)); }
inline double cospi(double x) { return cos(M_PI * fmod(x, 2.0)); }
inline void sincospi(double x, double* sine, double* cosine) {
  *sine = sinpi(x);
  *cosine = cospi(x);
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline float __saturatef(float x) { return x > 0.0f ? fminf(x, 1.0f) : 0.0f; }  // NaN becomes 0
inline int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
inline int __float2int_ru(float x) { return static_cast<int>(ceilf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

// Half precision: the headers of CUDA define the rest for the host. The sum is rounded once; float would round twice.
inline __half __hfma(__half a, __half b, __half c) {
  return __double2half(static_cast<double>(__half2float(a)) * __half2float(b) + __half2float(c));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)),
                        __hfma(__high2half(a), __high2half(b), __high2half(c)));
}
