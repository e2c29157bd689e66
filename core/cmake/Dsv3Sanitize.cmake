# -DDSV3_SANITIZE=address|thread instruments all that this tree builds; LibTorch stays as it is. tests/sanitizers
# says what such a build then runs with, tools/dev test --sanitize makes and runs it.
set(DSV3_SANITIZE "" CACHE STRING "address: AddressSanitizer, leaks, undefined behaviour; thread: ThreadSanitizer")
set_property(CACHE DSV3_SANITIZE PROPERTY STRINGS "" address thread)
if(NOT DSV3_SANITIZE)
  return()
elseif(DSV3_SANITIZE STREQUAL "address")
  set(flags -fsanitize=address,undefined -fno-sanitize-recover=undefined)
elseif(DSV3_SANITIZE STREQUAL "thread")
  set(flags -fsanitize=thread)
else()
  message(FATAL_ERROR "DSV3_SANITIZE is address or thread, not '${DSV3_SANITIZE}'")
endif()
# Line tables are all that reports need. LibTorch's classes have other members without NDEBUG. The library's assertions
# see what AddressSanitizer cannot: an index between a vector's size and its capacity. For all targets, since those that
# share a precompiled header must compile alike.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1 -DNDEBUG")
# GCC's warning is not reliable in instrumented code: it finds std::regex at fault.
add_compile_options(${flags} -fno-omit-frame-pointer -Wno-maybe-uninitialized)
add_compile_definitions(_GLIBCXX_ASSERTIONS)
add_link_options(${flags})
if(DSV3_SANITIZE STREQUAL "thread")
  add_library(dsv3_omp_threads STATIC ${PROJECT_SOURCE_DIR}/tests/sanitizers/omp_threads.cpp)
  set_target_properties(dsv3_omp_threads PROPERTIES ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
  # By its path: as a target it would have to be installed with those that link it.
  link_libraries(${PROJECT_BINARY_DIR}/lib/libdsv3_omp_threads.a)
  add_link_options(-Wl,--wrap=GOMP_parallel,--wrap=omp_get_thread_num,--wrap=omp_get_num_threads)
endif()
