// Versions of the CUDA runtime inside this library and of the driver it finds, as 1000 * major + 10 * minor.
#pragma once

namespace sturdy {

int cuda_runtime_version();
int cuda_driver_version();  // 0 without a driver

// Sets the error detail for a runtime that is newer than the driver: names both versions.
void set_driver_mismatch_detail() noexcept;

}  // namespace sturdy
