#include "common/cpu_features.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace sturdy {
namespace {

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The builtin asks the operating system too, whether it saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (avx2) {
    return Isa::avx2;
  }
#endif
  return Isa::portable;
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("STURDY_ISA");
  if (wanted == nullptr) {
    return best;
  }
  for (const Isa isa : {Isa::portable, Isa::avx2}) {
    if (std::strcmp(wanted, isa_name(isa)) == 0 && isa < best) {
      return isa;
    }
  }
  return best;
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

const char* built_isas() {
#if defined(__x86_64__)
  return "portable avx2 avx512";
#else
  return "portable";
#endif
}

}  // namespace sturdy
