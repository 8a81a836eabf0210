# CMake includes this where ggml's project begins (CMAKE_PROJECT_ggml_INCLUDE). Compilers fuse a product and a sum into
# one instruction where the processor can, which rounds once instead of twice. What quantizes must not: the same
# checkpoint would give other bytes on other processors. What answers may, and is a fifth faster for it.
if(NOT MSVC) # it fuses nothing unasked since 17.0
  cmake_language(DEFER CALL target_compile_options ggml-base PRIVATE -ffp-contract=off)
endif()
