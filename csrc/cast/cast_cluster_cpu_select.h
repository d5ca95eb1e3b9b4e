// Keys of affinities, and the k-th largest of many, on one instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cast/cast_cluster_cpu_plan.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "common/vector_math.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

using Keys = Lanes<float>;
constexpr int kKeyLanes = kLanes<float>;

STURDY_ALWAYS_INLINE Keys load_words(const void* from) {
  Keys words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

STURDY_ALWAYS_INLINE void store_words(void* to, Keys words) { std::memcpy(to, &words, sizeof words); }

// By integers alone: what the processor is told to do with subnormal numbers does not matter.
STURDY_ALWAYS_INLINE Keys order_keys(Keys bits) {
  const Keys magnitude = bits & 0x7fffffff;
  const Keys ordered = bits ^ ((bits >> 31) & 0x7fffffff);
  const Keys number = magnitude == 0 ? magnitude : ordered;
  return magnitude > 0x7f800000 ? Keys{} + cpu::kNanKey : number;
}

STURDY_ALWAYS_INLINE int32_t order_key(float value) {
  const auto bits = static_cast<int32_t>(float_bits(value));
  const int32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    return cpu::kNanKey;
  }
  return magnitude == 0 ? 0 : bits ^ ((bits >> 31) & 0x7fffffff);
}

// One bit for each lane in which the condition (-1 or 0) holds.
STURDY_ALWAYS_INLINE uint32_t lane_mask(Keys condition) {
#if defined(__AVX512F__)
  return static_cast<uint32_t>(_mm512_movepi32_mask((__m512i)condition));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)condition));
#else
  uint32_t mask = 0;
  for (int i = 0; i < kKeyLanes; i++) {
    mask |= static_cast<uint32_t>(condition[i] & 1) << i;
  }
  return mask;
#endif
}

// Writes the lanes of `words` that `mask` names to `to`, in their order, and returns how many. There is room for
// `room` words, at least as many as are named.
STURDY_ALWAYS_INLINE int64_t store_named(int32_t* to, Keys words, uint32_t mask, int64_t room) {
  const int64_t count = __builtin_popcount(mask);
#if defined(__AVX512F__)
  const __m512i packed = _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), (__m512i)words);
  if (room >= kKeyLanes) {
    _mm512_storeu_si512(to, packed);
  } else {
    _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << count) - 1), packed);
  }
#else
  (void)room;
  while (mask != 0) {
    *to++ = words[__builtin_ctz(mask)];
    mask &= mask - 1;
  }
#endif
  return count;
}

// Which keys are the k first: all above `key`, and the first `ties` of those that equal it.
struct Cut {
  int32_t key;
  int64_t ties;
};

// Splits the range of the keys into bins, counts them, and goes on with those of the bin that the k-th largest is in.
class Selection {
 public:
  // Scratch for up to `most` keys.
  Selection(Arena& arena, int64_t most) {
    buffer_ = arena.take<int32_t>(most + kKeyLanes);
    bins_ = arena.take<uint32_t>(kTables * kMostBins);
  }

  // Of keys[0 ... count), 1 <= k <= count.
  Cut find(const int32_t* keys, int64_t count, int64_t k) {
    for (;;) {
      int32_t least, most;
      find_range(keys, count, least, most);
      const uint32_t range = static_cast<uint32_t>(most) - static_cast<uint32_t>(least);
      if (range == 0) {
        return {least, k};
      }
      int bin_bits = kLeastBinBits;
      while (bin_bits < kMostBinBits && (int64_t{16} << bin_bits) < count) {
        bin_bits++;
      }
      const int shift = std::max(32 - __builtin_clz(range) - bin_bits, 0);
      const int64_t bins = (range >> shift) + 1;
      count_bins(keys, count, least, shift, bins);
      int64_t bin = bins - 1;
      while (bins_[bin] < k) {
        k -= bins_[bin--];
      }
      if (shift == 0) {
        return {static_cast<int32_t>(static_cast<uint32_t>(least) + static_cast<uint32_t>(bin)), k};
      }
      const auto first = static_cast<int32_t>(static_cast<uint32_t>(least) + (static_cast<uint32_t>(bin) << shift));
      const int64_t last = int64_t{first} + (int64_t{1} << shift) - 1;
      count = keep_between(keys, count, first, static_cast<int32_t>(std::min<int64_t>(last, most)));
      keys = buffer_;
    }
  }

 private:
  static constexpr int kLeastBinBits = 5, kMostBinBits = 11;
  static constexpr int64_t kMostBins = int64_t{1} << kMostBinBits;
  static constexpr int kTables = 4;  // neighbours are counted apart, as equal ones would wait for each other

  static void find_range(const int32_t* keys, int64_t count, int32_t& least, int32_t& most) {
    least = most = keys[0];
    int64_t i = 0;
    if (count >= kKeyLanes) {
      Keys low = load_words(keys), high = low;
      for (i = kKeyLanes; i + kKeyLanes <= count; i += kKeyLanes) {
        const Keys at = load_words(keys + i);
        low = at < low ? at : low;
        high = at > high ? at : high;
      }
      for (int lane = 0; lane < kKeyLanes; lane++) {
        least = std::min(least, low[lane]);
        most = std::max(most, high[lane]);
      }
    }
    for (; i < count; i++) {
      least = std::min(least, keys[i]);
      most = std::max(most, keys[i]);
    }
  }

  void count_bins(const int32_t* keys, int64_t count, int32_t least, int shift, int64_t bins) {
    std::memset(bins_, 0, static_cast<size_t>(kTables * bins) * sizeof(uint32_t));
    const auto bin_of = [&](int64_t i) {
      return (static_cast<uint32_t>(keys[i]) - static_cast<uint32_t>(least)) >> shift;
    };
    uint32_t *first = bins_, *second = bins_ + bins, *third = bins_ + 2 * bins, *fourth = bins_ + 3 * bins;
    int64_t i = 0;
    for (; i + kTables <= count; i += kTables) {
      first[bin_of(i)]++;
      second[bin_of(i + 1)]++;
      third[bin_of(i + 2)]++;
      fourth[bin_of(i + 3)]++;
    }
    for (; i < count; i++) {
      first[bin_of(i)]++;
    }
    for (int64_t bin = 0; bin < bins; bin++) {
      first[bin] += second[bin] + third[bin] + fourth[bin];
    }
  }

  // The keys from `first` to `last` move to the buffer, in their order, where they may already be.
  int64_t keep_between(const int32_t* keys, int64_t count, int32_t first, int32_t last) {
    int64_t kept = 0;
    int64_t i = 0;
    for (; i + kKeyLanes <= count; i += kKeyLanes) {
      const Keys at = load_words(keys + i);
      kept += store_named(buffer_ + kept, at, lane_mask((at >= first) & (at <= last)), kKeyLanes);
    }
    for (; i < count; i++) {
      buffer_[kept] = keys[i];
      kept += keys[i] >= first && keys[i] <= last ? 1 : 0;
    }
    return kept;
  }

  int32_t* buffer_;
  uint32_t* bins_;
};

// Those of keys[0 ... count) that the cut takes: visit(vector of positions, mask of lanes) for each vector. Returns
// when `wanted` have been taken.
template <typename Visit>
STURDY_ALWAYS_INLINE void for_each_taken(const int32_t* keys, int64_t count, Cut cut, int64_t wanted,
                                         const Visit& visit) {
  Keys position;
  for (int i = 0; i < kKeyLanes; i++) {
    position[i] = i;
  }
  for (int64_t i = 0; i < count && wanted > 0; i += kKeyLanes, position += kKeyLanes) {
    Keys at;
    uint32_t lanes = ~0u;
    if (count - i >= kKeyLanes) {
      at = load_words(keys + i);
    } else {
      at = Keys{} + cpu::kPaddingKey;
      std::memcpy(&at, keys + i, static_cast<size_t>(count - i) * sizeof(int32_t));
      lanes = (1u << (count - i)) - 1;
    }
    uint32_t taken = lane_mask(at > cut.key) & lanes;
    uint32_t equal = lane_mask(at == cut.key) & lanes;
    if (equal != 0 && cut.ties > 0) {
      while (__builtin_popcount(equal) > cut.ties) {
        equal &= ~(0x80000000u >> __builtin_clz(equal));
      }
      cut.ties -= __builtin_popcount(equal);
      taken |= equal;
    }
    if (taken != 0) {
      visit(position, taken);
      wanted -= __builtin_popcount(taken);
    }
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
