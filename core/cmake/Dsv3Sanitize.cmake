# -DDSV3_SANITIZE=address|thread instruments everything that this tree builds, but not LibTorch. `tools/dev test --sanitize`
# builds and runs it with the suppressions in tests/sanitizers.
set(DSV3_SANITIZE "" CACHE STRING "address: AddressSanitizer, leaks, undefined behaviour; thread: ThreadSanitizer")
set_property(CACHE DSV3_SANITIZE PROPERTY STRINGS "" address thread)
if(NOT DSV3_SANITIZE)
  return()
elseif(DSV3_SANITIZE STREQUAL "address")
  set(flags -fsanitize=address,undefined -fno-sanitize-recover=undefined)
elseif(DSV3_SANITIZE STREQUAL "thread")
  set(flags -fsanitize=thread)
else()
  message(FATAL_ERROR "DSV3_SANITIZE must be address or thread, not '${DSV3_SANITIZE}'")
endif()
# Reports need line tables only. Without NDEBUG, LibTorch's classes have other members. The standard library's assertions
# catch what AddressSanitizer misses: an index between a vector's size and its capacity. The flags apply to all targets,
# because targets that share a precompiled header must use the same ones.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1 -DNDEBUG")
# In instrumented code, GCC's warning has false positives in std::regex.
add_compile_options(${flags} -fno-omit-frame-pointer -Wno-maybe-uninitialized)
add_compile_definitions(_GLIBCXX_ASSERTIONS)
add_link_options(${flags})
if(DSV3_SANITIZE STREQUAL "thread")
  add_library(dsv3_omp_threads STATIC ${PROJECT_SOURCE_DIR}/tests/sanitizers/omp_threads.cpp)
  set_target_properties(dsv3_omp_threads PROPERTIES ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
  # Linked by path, since a target would have to be installed with those that link it.
  link_libraries(${PROJECT_BINARY_DIR}/lib/libdsv3_omp_threads.a)
  add_link_options(-Wl,--wrap=GOMP_parallel,--wrap=omp_get_thread_num,--wrap=omp_get_num_threads)
endif()
