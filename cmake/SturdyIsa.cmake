# CPU kernels are compiled once per instruction set; the choice is made at run time (csrc/common/cpu_features.h).

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(STURDY_ISAS portable avx2 avx512)
else()
  set(STURDY_ISAS portable)
endif()
set(sturdy_isa_flags_portable "")
set(sturdy_isa_flags_avx2 -mavx2 -mfma -mf16c)
set(sturdy_isa_flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512)

# What multiplies bfloat16 matrices, where the compiler knows it; each has one source of its own.
include(CheckCXXCompilerFlag)
set(STURDY_BF16_ISAS "")
set(sturdy_isa_flags_avx512_bf16 ${sturdy_isa_flags_avx512} -mavx512bf16)
set(sturdy_isa_flags_amx ${sturdy_isa_flags_avx512} -mamx-tile -mamx-bf16)
if("avx512" IN_LIST STURDY_ISAS)
  check_cxx_compiler_flag(-mavx512bf16 STURDY_COMPILER_AVX512_BF16)
  check_cxx_compiler_flag("-mamx-tile -mamx-bf16" STURDY_COMPILER_AMX)
  if(STURDY_COMPILER_AVX512_BF16)
    list(APPEND STURDY_BF16_ISAS avx512_bf16)
  endif()
  if(STURDY_COMPILER_AMX)
    list(APPEND STURDY_BF16_ISAS amx)
  endif()
endif()

# Adds the objects of `sources` for one instruction set to `target`.
function(sturdy_add_objects_of_isa target isa)
  set(objects ${target}_${isa})
  add_library(${objects} OBJECT ${ARGN})
  target_compile_definitions(${objects} PRIVATE STURDY_ISA_NAMESPACE=${isa})
  target_compile_options(${objects} PRIVATE ${sturdy_isa_flags_${isa}} -fno-math-errno -fno-trapping-math
                                            -ffp-contract=fast $<$<NOT:$<CONFIG:Debug>>:-O3>)
  target_include_directories(${objects} PRIVATE ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR}/csrc/include)
  target_link_libraries(${objects} PRIVATE sturdy_options)
  set_target_properties(${objects} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
                                              VISIBILITY_INLINES_HIDDEN ON)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
endfunction()

# Adds the objects of `sources`, one set per instruction set, to `target`.
function(sturdy_add_isa_sources target)
  foreach(isa IN LISTS STURDY_ISAS)
    sturdy_add_objects_of_isa(${target} ${isa} ${ARGN})
  endforeach()
endfunction()
