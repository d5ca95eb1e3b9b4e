// The thread-local message behind sturdy_last_error().
#pragma once

#include <string>

#include "common/types.h"
#include "sturdy/sturdy.h"

namespace sturdy {

// Sets the message that sturdy_last_error() returns, and hands the status back. Never throws: out of memory for the
// text keeps a fixed one.
sturdy_status fail(sturdy_status status, const std::string& message) noexcept;

// A lower layer's own words (the CUDA runtime's text, say), appended by report().
void set_error_detail(const char* detail) noexcept;

// What dispatch returns for a kernel's status: "<op>: <reason>".
sturdy_status report(const char* op, Status status) noexcept;

// Runs `body`, which returns a sturdy_status, and lets no exception out.
template <typename Body>
sturdy_status guarded(const char* op, const Body& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return report(op, Status::out_of_memory);
  } catch (...) {
    return report(op, Status::internal_error);
  }
}

}  // namespace sturdy
