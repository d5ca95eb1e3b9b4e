// Runs CUDA kernels on the CPU: every CUDA thread is a fiber, every synchronisation a rendezvous.
//
// Blocks run one after another, the threads of a block in turns: a thread runs until it must wait (or ends), then the
// next one that can run does. Launches from several OS threads take turns. An error in a kernel (deadlock, barrier
// divergence, a warp mask that names an exited lane, a fault) ends the launch and becomes its result.
//
// This header is what the CUDA API of cuda_api.hpp and the instruction twins of instructions.hpp are made of.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "observer.hpp"

#define STURDY_SIMT_HIDDEN __attribute__((visibility("hidden")))

// CUDA's built-in variables. They are real variables, set anew whenever a thread continues.
STURDY_SIMT_HIDDEN extern uint3 threadIdx;
STURDY_SIMT_HIDDEN extern uint3 blockIdx;
STURDY_SIMT_HIDDEN extern dim3 blockDim;
STURDY_SIMT_HIDDEN extern dim3 gridDim;
inline constexpr int warpSize = 32;

namespace simt {

// In which order the threads of a block (and the blocks) get their turns. A right kernel gives the same result in all.
enum class Order { forward = 0, reverse = 1, random = 2 };

struct Stats {
  uint64_t launches;
  uint64_t blocks;
  uint64_t threads;
  uint64_t switches;        // from one thread to the next
  uint64_t block_barriers;  // __syncthreads completed, once a block
  uint64_t collectives;     // warp collectives completed, once a warp
};

// The number of the running thread in its block: x fastest, then y, then z.
STURDY_SIMT_HIDDEN extern unsigned current_thread;
inline unsigned current_lane() { return current_thread % 32; }

// Runs body(closure) once for every thread of the grid. Returns what went wrong, or an empty string.
std::string run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* closure);

// The dynamic shared memory of the running block: filled with 0xFF (NaN, -1) before each block, 128-byte aligned.
void* dynamic_shared();

// ---- For functions called by kernels --------------------------------------------------------------------------------

// Ends the launch with an error. Nothing is unwound: the fibers are simply never continued.
[[noreturn]] void fail(const std::string& what_went_wrong);
// The same, with the running thread's indices and a place in the source.
[[noreturn]] void fail_at(const std::string& what_went_wrong, const char* operation, Site site);
// The same, for a place that is known as an instruction.
[[noreturn]] void fail_at_instruction(const std::string& what_went_wrong, const void* instruction);

// Waits for all live threads of the block; returns how many of them brought a predicate that is true.
unsigned block_barrier(bool predicate, const char* operation, Site site);

// bar.sync and bar.arrive: barrier `id` (1 to 15) completes once `threads` threads have come; only sync waits.
void named_barrier(unsigned id, unsigned threads, bool wait, const char* operation, Site site);

// What a warp collective does once all its lanes are there. `payloads` is indexed by lane.
using Combine = void (*)(void* const* payloads, uint32_t lanes);

enum class CollectiveKind : uint8_t {
  plain,          // shuffles, votes: no order in memory (CUDA promises none)
  orders_memory,  // __syncwarp
  whole_warp,     // ldmatrix, mma (.aligned): all 32 lanes, at the same instruction
};

// Waits for exactly the lanes in `mask`, then combines their payloads.
void collective(uint32_t mask, Combine combine, void* payload, CollectiveKind kind, const char* operation, Site site);

// Sleeps until wake(object). The executor notices when nobody is left to wake it.
void sleep_on(const void* object, const char* operation, Site site);
void wake(const void* object);

// Lets the others run: for a thread that spins. Spinning without anybody making progress ends the launch.
void yield_thread(const char* operation, Site site);
void note_progress();
// Called by an atomic that left its word as it was, as spinning ones do.
void note_fruitless_atomic(Site site);

// Work that goes on beside the threads (bulk copies): does one piece and returns true, or has none and returns false.
// Called as late as possible: when no thread can run. Random order also calls it in between.
void set_async_engine(bool (*do_one_piece)());

// A different number for every block that was ever run: what belongs to an older block is stale.
uint64_t block_serial();
// In random order a fair coin; otherwise false.
bool coin();
// Fails unless the address is a multiple of `bytes`.
void require_aligned(const void* address, size_t bytes, const char* operation, Site site);

}  // namespace simt

// As the last parameter of a function: the place of the call, unless one is given.
#define STURDY_SIMT_SITE ::simt::Site site = {__builtin_FILE(), __builtin_LINE()}
