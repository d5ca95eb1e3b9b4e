// Failures of a call on their way to Python.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <string>

#include "sturdy/sturdy.h"

namespace sturdy::numpy_binding {

// Becomes the documented Python exception for `status`.
class CallError : public std::exception {
 public:
  CallError(sturdy_status status, std::string message) : status(status), message(std::move(message)) {}
  const char* what() const noexcept override { return message.c_str(); }

  const sturdy_status status;
  const std::string message;
};

// Throws what the core said if `status` is not STURDY_OK. Call it on the thread that made the call.
void check(sturdy_status status);

// Lets Python see each CallError of this module as the exception that belongs to its status.
void register_exceptions();

}  // namespace sturdy::numpy_binding
