#include "common/amx_twin.h"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "common/half.h"

namespace sturdy {
namespace amx_twin {
namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct State {
  bool configured = false;
  int rows[kTiles];
  int row_bytes[kTiles];
  uint8_t data[kTiles][kRows][kRowBytes];
};

thread_local State state;
std::atomic<int64_t> configured_now{0};
std::atomic<int64_t> configured_ever{0};

void require(bool good, const char* what) {
  if (!good) {
    std::fprintf(stderr, "amx twin: %s\n", what);
    std::abort();
  }
}

void require_tile(int tile) {
  require(state.configured, "a tile instruction without a configuration");
  require(tile >= 0 && tile < kTiles, "no such tile");
  require(state.rows[tile] > 0 && state.row_bytes[tile] > 0, "a tile that is not configured");
}

// The multiplications flush subnormal numbers to zero, in operands and results.
float flush(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value; }

float multiply_add(float a, float b, float c) { return flush(std::fma(flush(a), flush(b), flush(c))); }

float element(const uint8_t* row, int index) {
  BFloat16 value;
  std::memcpy(&value, row + 2 * index, sizeof value);
  return to_float(value);
}

}  // namespace

void configure(int palette, int start_row, const uint16_t* row_bytes, const uint8_t* rows) {
  require(palette == 1 && start_row == 0, "a configuration that the processor refuses");
  for (int i = 0; i < kTiles; i++) {
    require(rows[i] <= kRows && row_bytes[i] <= kRowBytes && (rows[i] == 0) == (row_bytes[i] == 0),
            "a tile of a size that the processor refuses");
    state.rows[i] = rows[i];
    state.row_bytes[i] = row_bytes[i];
  }
  for (int i = kTiles; i < 16; i++) {
    require(rows[i] == 0 && row_bytes[i] == 0, "a ninth tile");
  }
  std::memset(state.data, 0, sizeof state.data);
  configured_now += state.configured ? 0 : 1;
  configured_ever++;
  state.configured = true;
}

void release() {
  configured_now -= state.configured ? 1 : 0;
  state.configured = false;
  std::memset(state.data, 0xff, sizeof state.data);  // NaN, should anyone read on
}

void zero(int tile) {
  require_tile(tile);
  std::memset(state.data[tile], 0, sizeof state.data[tile]);
}

void load(int tile, const void* from, int64_t row_bytes) {
  require_tile(tile);
  std::memset(state.data[tile], 0, sizeof state.data[tile]);
  for (int row = 0; row < state.rows[tile]; row++) {
    std::memcpy(state.data[tile][row], static_cast<const char*>(from) + row * row_bytes,
                static_cast<size_t>(state.row_bytes[tile]));
  }
}

void store(int tile, void* to, int64_t row_bytes) {
  require_tile(tile);
  for (int row = 0; row < state.rows[tile]; row++) {
    std::memcpy(static_cast<char*>(to) + row * row_bytes, state.data[tile][row],
                static_cast<size_t>(state.row_bytes[tile]));
  }
}

// First and second members of the pairs have sums of their own, which are added at the end.
void dot_bf16(int sum, int a, int b) {
  require_tile(sum);
  require_tile(a);
  require_tile(b);
  require(sum != a && sum != b && a != b, "tdpbf16ps on one tile twice");
  require(state.row_bytes[a] % 4 == 0 && state.row_bytes[b] % 4 == 0 && state.row_bytes[sum] % 4 == 0 &&
              state.rows[sum] == state.rows[a] && state.row_bytes[a] / 4 == state.rows[b] &&
              state.row_bytes[sum] == state.row_bytes[b],
          "tdpbf16ps on tiles that do not fit");
  const int words = state.row_bytes[a] / 4;
  const int columns = state.row_bytes[sum] / 4;
  for (int m = 0; m < state.rows[sum]; m++) {
    for (int n = 0; n < columns; n++) {
      float first = 0;
      float second = 0;
      for (int k = 0; k < words; k++) {
        first = multiply_add(element(state.data[a][m], 2 * k), element(state.data[b][k], 2 * n), first);
        second = multiply_add(element(state.data[a][m], 2 * k + 1), element(state.data[b][k], 2 * n + 1), second);
      }
      float value;
      std::memcpy(&value, state.data[sum][m] + 4 * n, sizeof value);
      value = flush(flush(value) + flush(first + second));
      std::memcpy(state.data[sum][m] + 4 * n, &value, sizeof value);
    }
  }
}

int64_t configured_threads() { return configured_now; }
int64_t configurations() { return configured_ever; }

}  // namespace amx_twin
}  // namespace sturdy
