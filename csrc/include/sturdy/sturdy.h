/* The C interface of sturdy: what every op shares. Each op family has a header of its own beside this one.
 *
 * Rules that hold for every function:
 *  - nothing throws, nothing allocates device memory, nothing synchronises a device;
 *  - outputs are allocated by the caller and never alias inputs;
 *  - a status other than STURDY_OK leaves a message in sturdy_last_error() and the outputs unspecified;
 *  - results do not depend on how the work was split among threads.
 */
#ifndef STURDY_STURDY_H_
#define STURDY_STURDY_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define STURDY_API __attribute__((visibility("default")))
#else
#define STURDY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised by one whenever a struct or a function changes in a way that a compiled caller would notice. */
#define STURDY_ABI_VERSION 1

typedef enum sturdy_status {
  STURDY_OK = 0,
  STURDY_EINVAL = 1,       /* a shape or a value is wrong */
  STURDY_ETYPE = 2,        /* a dtype is wrong */
  STURDY_EUNSUPPORTED = 3, /* right in itself, but not to be had here: size, device, architecture */
  STURDY_ENOMEM = 4,       /* host memory, or a workspace that is too small */
  STURDY_ECUDA = 5,        /* the CUDA runtime refused */
  STURDY_EINTERNAL = 6     /* a defect of this library */
} sturdy_status;

/* Device and dtype codes are those of DLPack. */
enum { STURDY_CPU = 1, STURDY_CUDA = 2 };
enum { STURDY_INT = 0, STURDY_UINT = 1, STURDY_FLOAT = 2, STURDY_BFLOAT = 4, STURDY_COMPLEX = 5, STURDY_BOOL = 6 };

typedef struct sturdy_device {
  int32_t device_type;
  int32_t device_id;
} sturdy_device;

typedef struct sturdy_dtype {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} sturdy_dtype;

/* A strided view, laid out exactly like DLPack's DLTensor. */
typedef struct sturdy_tensor {
  void* data; /* may be NULL for an empty tensor, and in calls that only infer shapes */
  sturdy_device device;
  int32_t ndim;
  sturdy_dtype dtype;
  int64_t* shape;
  int64_t* strides; /* in elements; NULL means compact and row-major */
  uint64_t byte_offset;
} sturdy_tensor;

/* Work on the half-open range [begin, end). Must not throw. */
typedef void (*sturdy_body)(void* arg, int64_t begin, int64_t end);

/* Where and with what an op runs. NULL instead of a context means: built-in threads, default stream, no workspace. */
typedef struct sturdy_context {
  uint32_t struct_size; /* sizeof(sturdy_context) as the caller was compiled; new fields are only ever appended */
  uint32_t flags;       /* must be 0 */
  void* pool;           /* first argument of parallel_for */
  /* Cover [0, n) once by calls of body on ranges of at least `grain` where possible. NULL: the built-in pool. */
  void (*parallel_for)(void* pool, int64_t n, int64_t grain, sturdy_body body, void* arg);
  void* stream;    /* cudaStream_t; NULL on the CPU */
  void* workspace; /* device scratch, 256-byte aligned, of the size that <op>_workspace asked for */
  size_t workspace_bytes;
} sturdy_context;

/* The ABI this library was built with; compare with STURDY_ABI_VERSION after loading. */
STURDY_API uint32_t sturdy_abi_version(void);

/* "0.1.0" */
STURDY_API const char* sturdy_version(void);

/* What went wrong in the last failed call on this thread; valid until the next call on it. Never NULL. */
STURDY_API const char* sturdy_last_error(void);

/* One JSON object: version, compiler, CPU kernels built and chosen, CUDA version and architectures. Static storage. */
STURDY_API const char* sturdy_build_info(void);

/* Threads of the built-in pool, which serves calls that inject none. 0 means: as many as the machine has. */
STURDY_API sturdy_status sturdy_set_num_threads(int32_t n);
STURDY_API int32_t sturdy_get_num_threads(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* STURDY_STURDY_H_ */
