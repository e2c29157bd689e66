# LibTorch inside the pinned `torch` wheel of .venv (or -DLIBTORCH_ROOT=<site-packages>/torch).
if(NOT LIBTORCH_ROOT)
  file(GLOB LIBTORCH_ROOT ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
endif()
find_library(LIBTORCH_CPU torch_cpu HINTS ${LIBTORCH_ROOT}/lib NO_DEFAULT_PATH)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch REQUIRED_VARS LIBTORCH_CPU
  REASON_FAILURE_MESSAGE "run `tools/dev setup` to install the wheel")
if(LibTorch_FOUND)
  include(${CMAKE_CURRENT_LIST_DIR}/LibTorchTarget.cmake)
endif()
