// The tile registers of AMX in ordinary memory: what amx.h does on a machine without them, for tests.
#pragma once

#include <cstdint>

namespace sturdy {
namespace amx_twin {

// As the instructions of these names; arguments that the processor would fault on end the program with a message.
void configure(int palette, int start_row, const uint16_t* row_bytes, const uint8_t* rows);
void release();
void zero(int tile);
void load(int tile, const void* from, int64_t row_bytes);
void store(int tile, void* to, int64_t row_bytes);
void dot_bf16(int sum, int a, int b);

// What tests ask: threads that are configured now, and how often any was.
int64_t configured_threads();
int64_t configurations();

}  // namespace amx_twin
}  // namespace sturdy
