#include "error.h"

namespace sturdy::numpy_binding {
namespace {

PyObject* shape_error = nullptr;  // sturdy.ShapeError, held for the life of the process

PyObject* exception_for(sturdy_status status) {
  switch (status) {
    case STURDY_EINVAL:
      return shape_error;
    case STURDY_ETYPE:
      return PyExc_TypeError;
    case STURDY_EUNSUPPORTED:
      return PyExc_NotImplementedError;
    case STURDY_ENOMEM:
      return PyExc_MemoryError;
    default:
      return PyExc_RuntimeError;
  }
}

}  // namespace

void check(sturdy_status status) {
  if (status != STURDY_OK) {
    throw CallError(status, sturdy_last_error());
  }
}

void register_exceptions() {
  pybind11::object found = pybind11::module_::import("sturdy._errors").attr("ShapeError");
  shape_error = found.release().ptr();
  pybind11::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      std::rethrow_exception(pointer);
    } catch (const CallError& error) {
      PyErr_SetString(exception_for(error.status), error.what());
    }
  });
}

}  // namespace sturdy::numpy_binding
