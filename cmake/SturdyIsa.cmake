# CPU kernels are compiled once per instruction set; the choice is made at run time (csrc/common/cpu_features.h).

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(STURDY_ISAS portable avx2 avx512)
else()
  set(STURDY_ISAS portable)
endif()
set(sturdy_isa_flags_portable "")
set(sturdy_isa_flags_avx2 -mavx2 -mfma -mf16c)
set(sturdy_isa_flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512)

# Adds the objects of `sources`, one set per instruction set, to `target`.
function(sturdy_add_isa_sources target)
  foreach(isa IN LISTS STURDY_ISAS)
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
  endforeach()
endfunction()
