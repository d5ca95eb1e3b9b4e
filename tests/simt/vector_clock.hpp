// Which accesses of which threads a thread of the block has already seen happen.
#pragma once

#include <cstdint>
#include <cstring>

namespace simt {

// Between two block barriers every thread counts time: one tick for each moment at which it publishes what it did. A
// clock holds for each thread u of the block a time: all that u did up to then is known. Only warps in `warps` have
// entries; since most synchronisation is within a warp, that keeps copying short.
struct VectorClock {
  static constexpr unsigned max_threads = 1024;

  uint32_t warps = 0;
  uint32_t known[max_threads];

  void clear() { warps = 0; }

  bool knows(unsigned thread, uint32_t time) const { return (warps >> thread / 32 & 1) != 0 && known[thread] >= time; }

  void learn(unsigned thread, uint32_t time) {
    open_warp(thread / 32);
    if (known[thread] < time) {
      known[thread] = time;
    }
  }

  void join(const VectorClock& other) {
    for (uint32_t left = other.warps; left != 0; left &= left - 1) {
      const unsigned warp = static_cast<unsigned>(__builtin_ctz(left));
      uint32_t* own = known + warp * 32;
      const uint32_t* theirs = other.known + warp * 32;
      if ((warps >> warp & 1) == 0) {
        memcpy(own, theirs, 32 * sizeof(uint32_t));
        continue;
      }
      for (unsigned lane = 0; lane < 32; ++lane) {
        own[lane] = own[lane] < theirs[lane] ? theirs[lane] : own[lane];
      }
    }
    warps |= other.warps;
  }

 private:
  void open_warp(unsigned warp) {
    if ((warps >> warp & 1) == 0) {
      memset(known + warp * 32, 0, 32 * sizeof(uint32_t));
      warps |= 1u << warp;
    }
  }
};

}  // namespace simt
