// Keeps the executor's error text for the tests. The full library has common/error.cpp in its place.
#include <string>

#include "kernels.h"

namespace {
std::string last_error;
}

namespace sturdy {
void set_error_detail(const char* detail) noexcept { last_error = detail; }
}  // namespace sturdy

const char* simt_test_error() { return last_error.c_str(); }
