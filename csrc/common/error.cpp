#include "common/error.h"

#include <new>

namespace sturdy {
namespace {

thread_local std::string message;
thread_local std::string detail;
thread_local bool message_lost = false;  // there was no memory left to hold the text

}  // namespace

sturdy_status fail(sturdy_status status, const std::string& text) noexcept {
  try {
    message = text;
    message_lost = false;
  } catch (...) {
    message_lost = true;
  }
  return status;
}

void set_error_detail(const char* text) noexcept {
  try {
    detail = text == nullptr ? "" : text;
  } catch (...) {
    detail.clear();
  }
}

sturdy_status report(const char* op, Status status) noexcept {
  sturdy_status code = STURDY_OK;
  const char* reason = "";
  switch (status) {
    case Status::ok:
      return STURDY_OK;
    case Status::unsupported_size:
      code = STURDY_EUNSUPPORTED;
      reason = "the sizes are larger than the kernel can index or launch";
      break;
    case Status::unsupported_dtype:
      code = STURDY_EUNSUPPORTED;
      reason = "there is no kernel for this dtype on this device";
      break;
    case Status::out_of_memory:
      code = STURDY_ENOMEM;
      reason = "not enough memory for scratch space";
      break;
    case Status::cuda_error:
      code = STURDY_ECUDA;
      reason = "CUDA error";
      break;
    case Status::not_built:
      code = STURDY_EUNSUPPORTED;
      reason = "this build has no CUDA kernels (`sturdy info` tells what it has)";
      break;
    case Status::internal_error:
      code = STURDY_EINTERNAL;
      reason = "internal error, please report it";
      break;
  }
  try {
    std::string text = std::string(op) + ": " + reason;
    if (!detail.empty()) {
      text += ": " + detail;
      detail.clear();
    }
    return fail(code, text);
  } catch (...) {
    message_lost = true;
    return code;
  }
}

}  // namespace sturdy

extern "C" const char* sturdy_last_error(void) {
  return sturdy::message_lost ? "out of memory while writing an error message" : sturdy::message.c_str();
}
