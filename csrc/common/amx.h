// The tile instructions of AMX, each in a wrapper with a host twin.
//
// With STURDY_AMX_TWIN defined the wrappers work on tile registers kept in ordinary memory (amx_twin.h), so that a
// kernel written with them can be run and checked on any machine. The instructions themselves have not been run: the
// machines this was written on have none. What the twin does follows the description of the instructions in Intel's
// Software Developer's Manual.
//
// Eight tile registers of up to 16 rows of 64 bytes belong to each thread. They can be used between configure() and
// release(); a thread that is left configured has its 8 KiB saved at every switch to another, so every configure()
// must meet a release() on the same thread: see TileSession.
#pragma once

#include <cstdint>

#include "common/half.h"

#if defined(STURDY_AMX_TWIN)
#include "common/amx_twin.h"
#endif

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

constexpr int kTileRows = 16;
constexpr int kTileWords = 16;  // of 32 bits, in a row

// The memory operand of ldtilecfg.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "the layout is the instruction's");

// Every tile register with all its rows and bytes.
constexpr TileConfig full_tiles() {
  TileConfig config{};
  config.palette = 1;
  for (int i = 0; i < 8; i++) {
    config.row_bytes[i] = kTileWords * 4;
    config.rows[i] = kTileRows;
  }
  return config;
}

#if defined(STURDY_AMX_TWIN)

inline void tile_configure(const TileConfig& config) {
  amx_twin::configure(config.palette, config.start_row, config.row_bytes, config.rows);
}
inline void tile_release() { amx_twin::release(); }
template <int tile>
inline void tile_zero() {
  amx_twin::zero(tile);
}
template <int tile>
inline void tile_load(const void* from, int64_t row_bytes) {
  amx_twin::load(tile, from, row_bytes);
}
template <int tile>
inline void tile_store(void* to, int64_t row_bytes) {
  amx_twin::store(tile, to, row_bytes);
}
template <int sum, int a, int b>
inline void tile_dot_bf16() {
  amx_twin::dot_bf16(sum, a, b);
}

#else

STURDY_ALWAYS_INLINE void tile_configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }

STURDY_ALWAYS_INLINE void tile_release() { asm volatile("tilerelease" : : : "memory"); }

template <int tile>
STURDY_ALWAYS_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}

// Rows are row_bytes apart in memory.
template <int tile>
STURDY_ALWAYS_INLINE void tile_load(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(tile) : "memory");
}

template <int tile>
STURDY_ALWAYS_INLINE void tile_store(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(tile) : "memory");
}

// sum[m][n] += sum over k of a[m][k].first * b[k][n].first + a[m][k].second * b[k][n].second, for float sums and words
// that are pairs of bfloat16.
template <int sum, int a, int b>
STURDY_ALWAYS_INLINE void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}

#endif

// The tile registers, for as long as it lives. On one thread, one at a time.
class TileSession {
 public:
  TileSession() {
    static constexpr TileConfig config = full_tiles();
    tile_configure(config);
  }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
  ~TileSession() { tile_release(); }
};

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
