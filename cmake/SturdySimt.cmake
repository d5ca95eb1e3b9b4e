# The test libraries in which the CUDA kernels run on the CPU (docs/simt.md). Never part of an installation.

# Headers of the CUDA runtime: those of nvcc, or the ones that come with a CUDA build of torch.
if(STURDY_NVCC)
  get_filename_component(nvcc_dir "${STURDY_NVCC}" REALPATH)
  get_filename_component(nvcc_dir "${nvcc_dir}" DIRECTORY)
  set(nvcc_include ${nvcc_dir}/../include ${nvcc_dir}/../targets/x86_64-linux/include)
endif()
execute_process(COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_paths()['purelib'])"
                OUTPUT_VARIABLE site_packages OUTPUT_STRIP_TRAILING_WHITESPACE)
find_path(STURDY_CUDA_HEADERS cuda_runtime.h
          HINTS ${nvcc_include} ENV CUDA_HOME PATH_SUFFIXES include
          PATHS /usr/local/cuda/include ${site_packages}/nvidia/cu13/include ${site_packages}/nvidia/cuda_runtime/include)
if(NOT STURDY_CUDA_HEADERS)
  message(FATAL_ERROR "sturdy: STURDY_SIMT=ON needs the headers of the CUDA runtime: install a CUDA toolkit, or "
                      "`pip install nvidia-cuda-runtime nvidia-cuda-crt`")
endif()

# Kernels reinterpret memory, and an array too large for a CUDA thread's stack must hit the guard page below it.
set(STURDY_SIMT_FLAGS -O2 -g1 -fno-strict-aliasing -fstack-clash-protection -Wall -Wextra -Wno-unknown-pragmas)

# sturdy_add_simt_library(<name> NAMESPACE <torch namespace> EXECUTOR <sources> [KERNEL_FLAGS <flags>])
#
# The core but for its CPU kernels, the CUDA kernels compiled for the CPU, and the torch binding under a namespace of its
# own.
# Must be called in the folder whose source properties say that .cu files are C++ here.
function(sturdy_add_simt_library name)
  cmake_parse_arguments(simt "" "NAMESPACE" "EXECUTOR;KERNEL_FLAGS" ${ARGN})
  set(core ${STURDY_CORE_SOURCES})
  list(FILTER core EXCLUDE REGEX "_cpu(_[a-z0-9_]+)?\\.cpp$|/gemm\\.cpp$")
  list(TRANSFORM core PREPEND ${PROJECT_SOURCE_DIR}/)
  list(TRANSFORM STURDY_CUDA_SOURCES PREPEND ${PROJECT_SOURCE_DIR}/ OUTPUT_VARIABLE kernels)
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX)
  add_library(${name}_kernels OBJECT ${kernels})
  target_compile_options(${name}_kernels PRIVATE -x c++ ${simt_KERNEL_FLAGS})
  add_library(${name} SHARED ${core} no_cpu_kernels.cpp ${STURDY_TORCH_SOURCES} ${simt_EXECUTOR}
                             $<TARGET_OBJECTS:${name}_kernels>)
  foreach(target ${name} ${name}_kernels)
    target_compile_definitions(${target} PRIVATE STURDY_SIMT STURDY_TORCH_NAMESPACE=${simt_NAMESPACE})
    target_compile_options(${target} PRIVATE ${STURDY_SIMT_FLAGS})
    target_include_directories(${target} SYSTEM PRIVATE ${STURDY_CUDA_HEADERS})
    target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR}/csrc/include
                                                 ${PROJECT_SOURCE_DIR}/tests/simt ${PROJECT_BINARY_DIR}/config)
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
                                               VISIBILITY_INLINES_HIDDEN ON)
  endforeach()
  target_link_libraries(${name} PRIVATE sturdy_options sturdy_stable_torch Threads::Threads ${CMAKE_DL_LIBS})
  # Its own copies of everything, whatever else of ours the process has loaded.
  target_link_options(${name} PRIVATE -Wl,-Bsymbolic -Wl,-z,defs -Wl,--version-script=${PROJECT_SOURCE_DIR}/csrc/sturdy.map)
  set_target_properties(${name} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
endfunction()
