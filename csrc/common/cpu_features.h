// Which instruction set the CPU kernels run on.
#pragma once

namespace sturdy {

enum class Isa { portable, avx2, avx512 };

// The best one that was built and that this machine has, or a lower one named by the environment variable STURDY_ISA
// (portable, avx2 or avx512). Read once.
Isa cpu_isa();

const char* isa_name(Isa isa);

// The ones in this build, for example "portable avx2 avx512".
const char* built_isas();

}  // namespace sturdy
