#include "common/cpu_features.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace sturdy {
namespace {

// The levels of STURDY_ISA.
enum class Level { portable, avx2, avx512, avx512_bf16, amx };
constexpr const char* kLevelNames[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};

Level highest_wanted() {
  const char* wanted = std::getenv("STURDY_ISA");
  for (int i = 0; wanted != nullptr && i <= static_cast<int>(Level::amx); i++) {
    if (std::strcmp(wanted, kLevelNames[i]) == 0) {
      return static_cast<Level>(i);
    }
  }
  return Level::amx;
}

Level wanted_level() {
  static const Level level = highest_wanted();
  return level;
}

#if defined(__x86_64__)

bool has_avx512_bf16() {
#if defined(STURDY_HAVE_AVX512_BF16)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 5 & 1) != 0;
#else
  return false;
#endif
}

#if defined(STURDY_HAVE_AMX) && defined(__linux__)

bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kBf16AndTile = 1u << 22 | 1u << 24;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kBf16AndTile) != kBf16AndTile) {
    return false;
  }
  unsigned low = 0, high = 0;  // the state that the operating system saves: bits 17 and 18 are that of tiles
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) {
    return false;
  }
  // Palette 1 must be the one that the kernels configure: 8 tiles of 16 rows of 64 bytes.
  if (__get_cpuid_count(0x1d, 1, &eax, &ebx, &ecx, &edx) == 0) {
    return false;
  }
  const unsigned row_bytes = ebx & 0xffffu, tiles = ebx >> 16, rows = ecx & 0xffffu;
  return row_bytes == 64 && tiles == 8 && rows == 16;
}

// Linux gives a process the tile registers' state on request alone; the first tile instruction is an illegal one else.
bool amx_permitted() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool amx_usable() {
  static const bool usable = has_amx() && amx_permitted();
  return usable;
}

#else
bool amx_usable() { return false; }
#endif

#endif  // __x86_64__

}  // namespace

Isa machine_isa() {
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

Bf16Isa machine_bf16_isa() {
#if defined(__x86_64__)
  if (machine_isa() == Isa::avx512) {
    if (amx_usable()) {
      return Bf16Isa::amx;
    }
    if (has_avx512_bf16()) {
      return Bf16Isa::avx512_bf16;
    }
  }
#endif
  return Bf16Isa::none;
}

Isa cpu_isa() {
  static const Isa isa = [] {
    const Isa best = machine_isa();
    const Level wanted = wanted_level();
    if (wanted == Level::portable) {
      return Isa::portable;
    }
    return wanted == Level::avx2 && best > Isa::avx2 ? Isa::avx2 : best;
  }();
  return isa;
}

Bf16Isa cpu_bf16_isa() {
  static const Bf16Isa isa = [] {
    const Level wanted = wanted_level();
    if (wanted < Level::avx512_bf16) {
      return Bf16Isa::none;
    }
#if defined(__x86_64__)
    if (wanted == Level::avx512_bf16) {  // the tile registers are not even asked for
      return machine_isa() == Isa::avx512 && has_avx512_bf16() ? Bf16Isa::avx512_bf16 : Bf16Isa::none;
    }
#endif
    return machine_bf16_isa();
  }();
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

const char* isa_name(Bf16Isa isa) {
  switch (isa) {
    case Bf16Isa::amx:
      return "amx";
    case Bf16Isa::avx512_bf16:
      return "avx512_bf16";
    default:
      return "none";
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
