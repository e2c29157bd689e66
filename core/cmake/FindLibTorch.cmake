# LibTorch inside the pinned `torch` wheel of .venv (or -DLIBTORCH_ROOT=<site-packages>/torch).
# Defines the target LibTorch::cpu, which links libtorch_cpu and libc10 only.
if(NOT LIBTORCH_ROOT)
  file(GLOB LIBTORCH_ROOT ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
endif()
find_library(LIBTORCH_CPU torch_cpu HINTS ${LIBTORCH_ROOT}/lib NO_DEFAULT_PATH)
find_library(LIBTORCH_C10 c10 HINTS ${LIBTORCH_ROOT}/lib NO_DEFAULT_PATH)
if(LIBTORCH_CPU)
  file(STRINGS ${LIBTORCH_ROOT}/include/torch/headeronly/version.h LibTorch_VERSION REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH)")
  string(REGEX REPLACE "[^0-9;]" "" LibTorch_VERSION "${LibTorch_VERSION}")
  string(REPLACE ";" "." LibTorch_VERSION "${LibTorch_VERSION}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch REQUIRED_VARS LIBTORCH_CPU LIBTORCH_C10 VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "run `tools/dev setup` to install the wheel")
if(LibTorch_FOUND AND NOT TARGET LibTorch::cpu)
  cmake_path(GET LIBTORCH_ROOT PARENT_PATH site_packages)
  add_library(LibTorch::c10 SHARED IMPORTED)
  set_target_properties(LibTorch::c10 PROPERTIES IMPORTED_LOCATION ${LIBTORCH_C10})
  add_library(LibTorch::cpu SHARED IMPORTED)
  set_target_properties(LibTorch::cpu PROPERTIES
    IMPORTED_LOCATION ${LIBTORCH_CPU}
    INTERFACE_INCLUDE_DIRECTORIES "${LIBTORCH_ROOT}/include;${LIBTORCH_ROOT}/include/torch/csrc/api/include"
    # at::parallel_for is in a header and runs serially in files compiled without OpenMP. Linking the wheel's own libgomp
    # avoids a second thread pool.
    INTERFACE_COMPILE_OPTIONS -fopenmp
    INTERFACE_LINK_LIBRARIES "LibTorch::c10;${LIBTORCH_ROOT}/lib/libgomp.so.1"
    # libtorch_cpu needs libcudart and libcupti from their wheels. Its RPATH finds them at run time, but the linker needs a
    # hint.
    INTERFACE_LINK_OPTIONS "-Wl,--allow-shlib-undefined;-Wl,-rpath-link,${site_packages}/nvidia/cu13/lib")
endif()
