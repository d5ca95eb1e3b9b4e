// Named ranges of host time in which an op starts its kernels, as a profiler shows them (Nsight Systems:
// "sturdy::...").
//
//   const NvtxRange range("sturdy::push_pull_conv2d");  // until the end of the scope
//
// Without a profiler attached a range costs two calls through a pointer that is null. It is nothing at all where the
// headers of NVTX are missing (they come with the CUDA toolkit) and on the executor.
#pragma once

#if defined(__CUDACC__) && !defined(STURDY_SIMT) && defined(__has_include)
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define STURDY_HAS_NVTX
#endif
#endif

namespace sturdy {

class NvtxRange {
 public:
#if defined(STURDY_HAS_NVTX)
  explicit NvtxRange(const char* name) noexcept { nvtxRangePushA(name); }
  ~NvtxRange() { nvtxRangePop(); }
#else
  explicit NvtxRange(const char* /*name*/) noexcept {}
  ~NvtxRange() {}  // not trivial, so that a range is never an unused variable
#endif
  NvtxRange(const NvtxRange&) = delete;
  NvtxRange& operator=(const NvtxRange&) = delete;
};

}  // namespace sturdy
