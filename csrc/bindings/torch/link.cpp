// Symbols that C++ programs and the Python loader look for in libsturdy_torch.
#include "sturdy/sturdy.h"

extern "C" {

// A program that links this library but calls nothing in it would lose it to --as-needed; calling this keeps it.
STURDY_API int sturdy_torch_link(void) { return 1; }

// The ABI of the core this binding was compiled against.
STURDY_API uint32_t sturdy_torch_abi_version(void) { return STURDY_ABI_VERSION; }
}
