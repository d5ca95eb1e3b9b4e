// Keys of affinities, and the k-th largest of many, on one instruction set.
#pragma once

#include <algorithm>
#include <cmath>
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

STURDY_ALWAYS_INLINE int32_t largest(Keys words) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)words);
#else
  int32_t most = words[0];
  for (int lane = 1; lane < kKeyLanes; lane++) {
    most = std::max<int32_t>(most, words[lane]);
  }
  return most;
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
// Of many keys, some are counted first, which tells roughly where it is: what is left to do is a pass over vectors,
// unless the guess was wrong.
class Selection {
 public:
  // Scratch for up to `most` keys.
  Selection(Arena& arena, int64_t most) {
    buffer_ = arena.take<int32_t>(most + kKeyLanes);
    bins_ = arena.take<uint32_t>(kTables * kMostBins);
  }

  // Of keys[0 ... count), 1 <= k <= count; padding does not count as one of them.
  Cut find(const int32_t* keys, int64_t count, int64_t k) {
    bool guess = count >= kLeastGuess;
    for (;;) {
      const Range range = find_range(keys, count);
      if (range.least == range.most) {
        return {range.least, k};
      }
      const Bins bins = cut_up(range, guess ? count / kGuessStep : count);
      int32_t low, high;
      if (guess) {
        guess = false;
        guess_range(keys, count, k, range, bins, low, high);
        const int64_t above = count_above(keys, count, high);
        const int64_t within = keep_between(keys, count, low, high);
        if (above >= k || above + within < k) {
          continue;
        }
        k -= above;
        count = within;
      } else {
        count_bins(keys, count, kTables, range, bins);
        int64_t bin = bins.count - 1;
        while (bins_[bin] < k) {
          k -= bins_[bin--];
        }
        low = bin_begin(range, bins, bin);
        if (bins.shift == 0) {
          return {low, k};
        }
        high = bin == bins.count - 1 ? range.most : bin_begin(range, bins, bin + 1) - 1;
        count = keep_between(keys, count, low, high);
      }
      keys = buffer_;
    }
  }

 private:
  static constexpr int kLeastBinBits = 5, kMostBinBits = 10;
  static constexpr int64_t kMostBins = int64_t{1} << kMostBinBits;
  static constexpr int64_t kTables = 4;     // neighbours are counted apart, as equal ones would wait for each other
  static constexpr int64_t kGuessStep = 8;  // one of so many vectors is looked at
  static constexpr int64_t kLeastGuess = 2048;

  struct Range {
    int32_t least, most;
  };
  struct Bins {
    int shift;
    int64_t count;
  };

  static Range find_range(const int32_t* keys, int64_t count) {
    Keys low = Keys{} + cpu::kNoKey, high = Keys{} + cpu::kPaddingKey;
    const auto look_at = [&](Keys at) {
      high = at > high ? at : high;
      at = at == cpu::kPaddingKey ? Keys{} + cpu::kNoKey : at;
      low = at < low ? at : low;
    };
    int64_t i = 0;
    for (; i + kKeyLanes <= count; i += kKeyLanes) {
      look_at(load_words(keys + i));
    }
    if (i < count) {
      Keys rest = Keys{} + keys[i];
      std::memcpy(&rest, keys + i, static_cast<size_t>(count - i) * sizeof(int32_t));
      look_at(rest);
    }
    Range range{low[0], high[0]};
    for (int lane = 1; lane < kKeyLanes; lane++) {
      range.least = std::min<int32_t>(range.least, low[lane]);
      range.most = std::max<int32_t>(range.most, high[lane]);
    }
    return range;
  }

  // As many bins as are worth it for so many keys.
  static Bins cut_up(Range range, int64_t keys) {
    const uint32_t width = static_cast<uint32_t>(range.most) - static_cast<uint32_t>(range.least);
    int bits = kLeastBinBits;
    while (bits < kMostBinBits && (int64_t{4} << bits) < keys) {
      bits++;
    }
    const int shift = std::max(32 - __builtin_clz(width) - bits, 0);
    return {shift, int64_t{width >> shift} + 1};
  }

  static int32_t bin_begin(Range range, Bins bins, int64_t bin) {
    return static_cast<int32_t>(static_cast<uint32_t>(range.least) + (static_cast<uint32_t>(bin) << bins.shift));
  }

  // Of all keys, or of the vectors that a guess looks at. What is below the range, padding, counts as its least.
  void count_bins(const int32_t* keys, int64_t count, int64_t step, Range range, Bins bins) {
    std::memset(bins_, 0, static_cast<size_t>(kTables * bins.count) * sizeof(uint32_t));
    uint32_t* tables[kTables];
    for (int64_t t = 0; t < kTables; t++) {
      tables[t] = bins_ + t * bins.count;
    }
    const auto add = [&](int64_t i, int64_t t) {
      const int32_t key = std::max(keys[i], range.least);
      tables[t][(static_cast<uint32_t>(key) - static_cast<uint32_t>(range.least)) >> bins.shift]++;
    };
    int64_t i = 0;
    for (; i + kTables <= count; i += step) {
      STURDY_UNROLL
      for (int64_t t = 0; t < kTables; t++) {
        add(i + t, t);
      }
    }
    for (; step == kTables && i < count; i++) {
      add(i, 0);
    }
    for (int64_t bin = 0; bin < bins.count; bin++) {
      tables[0][bin] += tables[1][bin] + tables[2][bin] + tables[3][bin];
    }
  }

  // A range of keys that the k-th largest is most likely in: its rank among those looked at is off by about the root of
  // the rank.
  void guess_range(const int32_t* keys, int64_t count, int64_t k, Range range, Bins bins, int32_t& low, int32_t& high) {
    count_bins(keys, count, kTables * kGuessStep, range, bins);
    const double looked_at = static_cast<double>(count / (kTables * kGuessStep) * kTables);
    const double part = static_cast<double>(k) / static_cast<double>(count);
    const double rank = looked_at * part;
    const double margin = 4 + 4 * std::sqrt(rank * (1 - part));
    int64_t seen = 0;
    int64_t bin = bins.count - 1;
    while (bin > 0 && static_cast<double>(seen + bins_[bin]) < rank - margin) {
      seen += bins_[bin--];
    }
    high = bin == bins.count - 1 ? range.most : bin_begin(range, bins, bin + 1) - 1;
    while (bin > 0 && static_cast<double>(seen + bins_[bin]) < rank + margin) {
      seen += bins_[bin--];
    }
    low = bin_begin(range, bins, bin);
  }

  static int64_t count_above(const int32_t* keys, int64_t count, int32_t bound) {
    Keys sum = Keys{};
    int64_t i = 0;
    for (; i + kKeyLanes <= count; i += kKeyLanes) {
      sum -= load_words(keys + i) > bound;
    }
    int64_t above = 0;
    for (int lane = 0; lane < kKeyLanes; lane++) {
      above += sum[lane];
    }
    for (; i < count; i++) {
      above += keys[i] > bound ? 1 : 0;
    }
    return above;
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
