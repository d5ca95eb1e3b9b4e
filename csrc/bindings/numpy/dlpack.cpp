#include "dlpack.h"

#include <string>

namespace py = pybind11;

namespace sturdy::numpy_binding {
namespace {

// What a capsule named "dltensor" points to.
struct ManagedTensor {
  sturdy_tensor tensor;
  void* manager;
  void (*deleter)(ManagedTensor* self);
};

// What a capsule named "dltensor_versioned" points to. Only the first three members have their place in every version.
struct VersionedTensor {
  struct {
    uint32_t major;
    uint32_t minor;
  } version;
  void* manager;
  void (*deleter)(VersionedTensor* self);
  uint64_t flags;
  sturdy_tensor tensor;
};

constexpr uint64_t read_only_flag = 1;
constexpr uint32_t major_version = 1;

// Pages that CUDA has pinned are ordinary host memory to the CPU.
constexpr int pinned_host = 3;

template <typename Managed>
std::shared_ptr<void> own(Managed* managed) {
  return std::shared_ptr<void>(managed, [](void* pointer) {
    auto* self = static_cast<Managed*>(pointer);
    if (self->deleter != nullptr) {
      self->deleter(self);
    }
  });
}

void check_device(const char* where, int device_type) {
  if (device_type != STURDY_CPU && device_type != pinned_host) {
    throw py::buffer_error(std::string(where) + " must be in CPU memory, got a tensor on DLPack device type " +
                           std::to_string(device_type));
  }
}

py::object export_capsule(const py::object& producer) {
  const py::object method = producer.attr("__dlpack__");
  try {
    return method(py::arg("max_version") = py::make_tuple(major_version, 1));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) {
      throw;
    }
  }
  return method();  // a producer from before versions
}

}  // namespace

BorrowedTensor::BorrowedTensor(const char* where, const py::object& producer) {
  check_device(where, py::cast<py::tuple>(producer.attr("__dlpack_device__")())[0].cast<int>());
  const py::object capsule = export_capsule(producer);
  // Renaming a capsule is how DLPack marks it as taken: from then on the deleter is ours to call.
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* managed = static_cast<VersionedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->version.major != major_version) {
      throw py::buffer_error(std::string(where) + " came as DLPack version " + std::to_string(managed->version.major) +
                             ", of which only " + std::to_string(major_version) + " is known");
    }
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
    owner_ = own(managed);
    tensor_ = &managed->tensor;
    writable_ = (managed->flags & read_only_flag) == 0;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    auto* managed = static_cast<ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    owner_ = own(managed);
    tensor_ = &managed->tensor;
  } else {
    throw py::buffer_error(std::string(where) + ": __dlpack__ did not return a DLPack capsule");
  }
  check_device(where, tensor_->device.device_type);
}

}  // namespace sturdy::numpy_binding
