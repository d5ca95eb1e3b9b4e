// From an instruction to "file:line".
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "observer.hpp"

namespace simt {
namespace {

// addr2line -i prints the innermost inlined function first and its callers after. The wrappers and the headers of
// CUDA are seldom what the reader wants to see, so they are passed over as long as something else follows.
bool is_wrapper(const char* path) {
  return strstr(path, "/usr/") == path || strstr(path, "/csrc/common/cuda") != nullptr ||
         strstr(path, "/simt/cuda_api.hpp") != nullptr;
}

}  // namespace

std::string describe_code(const void* instruction) {
  Dl_info module;
  if (instruction == nullptr || dladdr(instruction, &module) == 0 || module.dli_fname == nullptr) {
    return "unknown code";
  }
  const uintptr_t offset = reinterpret_cast<uintptr_t>(instruction) - reinterpret_cast<uintptr_t>(module.dli_fbase);
  char fallback[600];
  snprintf(fallback, sizeof fallback, "%s+%#lx", module.dli_fname, static_cast<unsigned long>(offset));
  char command[700];
  snprintf(command, sizeof command, "addr2line -i -e '%s' %#lx 2>/dev/null", module.dli_fname,
           static_cast<unsigned long>(offset));
  FILE* pipe = popen(command, "r");
  if (pipe == nullptr) {
    return fallback;
  }
  std::string found;
  bool found_kernel_code = false;
  char line[600];
  while (fgets(line, sizeof line, pipe) != nullptr) {
    line[strcspn(line, " \n")] = '\0';  // also cuts "(discriminator 2)"
    if (!found_kernel_code && line[0] != '?' && strstr(line, ":?") == nullptr) {
      found = line;
      found_kernel_code = !is_wrapper(line);
    }
  }
  pclose(pipe);
  return found.empty() ? fallback : found;
}

}  // namespace simt
