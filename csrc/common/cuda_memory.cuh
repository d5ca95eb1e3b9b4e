// Loads and stores of several elements at once.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/cuda_platform.cuh"

namespace sturdy {

// N elements that move together, aligned to their size: at most 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N) Packed {
  static_assert(sizeof(T) * N == 1 || sizeof(T) * N == 2 || sizeof(T) * N == 4 || sizeof(T) * N == 8 ||
                    sizeof(T) * N == 16,
                "one load moves 1, 2, 4, 8 or 16 bytes");

  T element[N];

  STURDY_DEVICE T& operator[](int i) { return element[i]; }
  STURDY_DEVICE const T& operator[](int i) const { return element[i]; }
};

// As many elements as 16 bytes hold.
template <typename T>
inline constexpr int packed_width = 16 / static_cast<int>(sizeof(T));

// How the caches should treat it.
enum class Cache {
  normal,
  read_only,  // loads: nobody writes there while the kernel runs
  streaming,  // used once: evicted first
};

namespace detail {

template <int Bytes>
struct Word;
template <>
struct Word<1> {
  using type = unsigned char;
};
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// On the executor a misaligned address is an error, as it is on a GPU.
#if defined(STURDY_SIMT)
inline void check_alignment(const void* address, size_t bytes, const char* operation, simt::Site site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    simt::require_aligned(address, bytes, operation, site);
  }
}
#define STURDY_CALL_SITE , STURDY_SIMT_SITE
#define STURDY_CHECK_ALIGNMENT(address, bytes, operation) detail::check_alignment(address, bytes, operation, site)
#else
#define STURDY_CALL_SITE
#define STURDY_CHECK_ALIGNMENT(address, bytes, operation)
#endif

}  // namespace detail

// Loads N elements from an address that is a multiple of their common size.
template <int N, Cache Hint = Cache::normal, typename T>
STURDY_DEVICE Packed<T, N> load_packed(const T* address STURDY_CALL_SITE) {
  using Word = typename detail::Word<static_cast<int>(sizeof(T)) * N>::type;
  STURDY_CHECK_ALIGNMENT(address, sizeof(Word), "load_packed");
  union {  // the bytes as the load sees them, and as the caller does
    Word word;
    Packed<T, N> packed;
  } value = {};
  const Word* source = reinterpret_cast<const Word*>(address);
  if constexpr (Hint == Cache::read_only) {
    value.word = __ldg(source);
  } else if constexpr (Hint == Cache::streaming) {
    value.word = __ldcs(source);
  } else {
    value.word = *source;
  }
  return value.packed;
}

// Stores N elements to an address that is a multiple of their common size.
template <Cache Hint = Cache::normal, typename T, int N>
STURDY_DEVICE void store_packed(T* address, const Packed<T, N>& elements STURDY_CALL_SITE) {
  static_assert(Hint != Cache::read_only, "a store writes");
  using Word = typename detail::Word<static_cast<int>(sizeof(T)) * N>::type;
  STURDY_CHECK_ALIGNMENT(address, sizeof(Word), "store_packed");
  const Word word = reinterpret_cast<const Word&>(elements);
  Word* target = reinterpret_cast<Word*>(address);
  if constexpr (Hint == Cache::streaming) {
    __stcs(target, word);
  } else {
    *target = word;
  }
}

#undef STURDY_CALL_SITE
#undef STURDY_CHECK_ALIGNMENT

}  // namespace sturdy
