// The bounds of a clamp as the schemas have them: an empty list, or the two.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace sturdy::torch_binding {

inline void check_clip(const char* op, const std::vector<double>& clip) {
  if (!clip.empty() && clip.size() != 2) {
    throw std::runtime_error(std::string("[sturdy:EINVAL] ") + op + ": clip must be empty or have 2 values, got " +
                             std::to_string(clip.size()));
  }
}

}  // namespace sturdy::torch_binding
