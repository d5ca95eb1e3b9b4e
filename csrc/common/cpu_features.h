// Which instruction set the CPU kernels run on.
//
// Levels, each with all that is below it:
//
//   portable     what every processor of the architecture has
//   avx2         AVX2, FMA, F16C
//   avx512       AVX-512 F, BW, DQ, VL
//   avx512_bf16  products of bfloat16 pairs (vdpbf16ps)
//   amx          tile registers for bfloat16 products (AMX-TILE, AMX-BF16), which the operating system must grant
//
// The environment variable STURDY_ISA names the highest one to use; unset, or a name that is none of these, means the
// best there is, and so does one that the machine lacks. Read once.
#pragma once

namespace sturdy {

enum class Isa { portable, avx2, avx512 };

// The vectors: the best that was built and that this machine has, or lower if STURDY_ISA says so.
Isa cpu_isa();

// A call in the namespace of cpu_isa(), of a function that is compiled once for each instruction set.
#if defined(__x86_64__)
#define STURDY_ON_CPU_ISA(call)                                \
  (::sturdy::cpu_isa() == ::sturdy::Isa::avx512 ? avx512::call \
   : ::sturdy::cpu_isa() == ::sturdy::Isa::avx2 ? avx2::call   \
                                                : portable::call)
#else
#define STURDY_ON_CPU_ISA(call) portable::call
#endif

// What multiplies bfloat16 matrices, beside the vectors, which do it in float. More than `none` only where cpu_isa()
// is avx512.
enum class Bf16Isa { none, avx512_bf16, amx };

// Asks the operating system for the tile registers, once, if nothing else stands against using them: a thread that
// starts later has the permission too. Refused means avx512_bf16.
Bf16Isa cpu_bf16_isa();

// What the machine has and the operating system grants, whatever STURDY_ISA says.
Isa machine_isa();
Bf16Isa machine_bf16_isa();

const char* isa_name(Isa isa);
const char* isa_name(Bf16Isa isa);

// The ones in this build, for example "portable avx2 avx512".
const char* built_isas();

}  // namespace sturdy
