// Version, thread settings and what this build contains.
#include <new>
#include <string>

#include "build_config.h"
#include "common/cpu_features.h"
#include "common/error.h"
#include "common/parallel.h"
#include "sturdy/sturdy.h"

#if defined(STURDY_WITH_CUDA)
#include "common/cuda_info.h"
#endif

namespace sturdy {
namespace {

std::string describe_build() {
  std::string text = "{\"version\": \"" STURDY_VERSION "\"";
  text += ", \"abi\": " + std::to_string(STURDY_ABI_VERSION);
  text += ", \"compiler\": \"" STURDY_COMPILER "\"";
  text += ", \"build_type\": \"" STURDY_BUILD_TYPE "\"";
  text += ", \"cpu_kernels\": [" STURDY_ISA_LIST "]";
  text += std::string(", \"cpu_kernels_used\": \"") + isa_name(cpu_isa()) + "\"";
  text += std::string(", \"cpu_bfloat16\": \"") + isa_name(cpu_bf16_isa()) + "\"";
#if defined(STURDY_WITH_CUDA)
  text += ", \"cuda\": {\"toolkit\": \"" STURDY_CUDA_TOOLKIT "\", \"architectures\": [" STURDY_CUDA_ARCH_LIST "]";
  text += ", \"runtime\": " + std::to_string(cuda_runtime_version());
  text += ", \"driver\": " + std::to_string(cuda_driver_version()) + "}";
#else
  text += ", \"cuda\": null";
#endif
  return text + "}";
}

}  // namespace
}  // namespace sturdy

extern "C" {

uint32_t sturdy_abi_version(void) { return STURDY_ABI_VERSION; }

const char* sturdy_version(void) { return STURDY_VERSION; }

const char* sturdy_build_info(void) {
  try {
    static const std::string text = sturdy::describe_build();
    return text.c_str();
  } catch (...) {
    return "{}";
  }
}

sturdy_status sturdy_set_num_threads(int32_t n) {
  return sturdy::guarded("sturdy_set_num_threads", [&] {
    if (n < 0) {
      return sturdy::fail(STURDY_EINVAL, "sturdy_set_num_threads: n must be at least 0, got " + std::to_string(n));
    }
    sturdy::set_pool_threads(n);
    return STURDY_OK;
  });
}

int32_t sturdy_get_num_threads(void) {
  try {
    return sturdy::pool_threads();
  } catch (...) {
    return 1;
  }
}

}  // extern "C"
