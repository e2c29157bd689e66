# Defines the target LibTorch::cpu, which links libtorch_cpu and libc10 only, from the `torch` folder of a wheel
# (LIBTORCH_ROOT).
if(TARGET LibTorch::cpu)
  return()
endif()
cmake_path(GET LIBTORCH_ROOT PARENT_PATH site_packages)
add_library(LibTorch::c10 SHARED IMPORTED)
set_target_properties(LibTorch::c10 PROPERTIES IMPORTED_LOCATION ${LIBTORCH_ROOT}/lib/libc10.so)
add_library(LibTorch::cpu SHARED IMPORTED)
set_target_properties(LibTorch::cpu PROPERTIES
  IMPORTED_LOCATION ${LIBTORCH_ROOT}/lib/libtorch_cpu.so
  INTERFACE_INCLUDE_DIRECTORIES "${LIBTORCH_ROOT}/include;${LIBTORCH_ROOT}/include/torch/csrc/api/include"
  # at::parallel_for is in a header and runs serially in files compiled without OpenMP. Linking the wheel's own libgomp
  # avoids a second thread pool.
  INTERFACE_COMPILE_OPTIONS -fopenmp
  INTERFACE_LINK_LIBRARIES "LibTorch::c10;${LIBTORCH_ROOT}/lib/libgomp.so.1"
  # libtorch_cpu needs libcudart and libcupti from their wheels. Its RPATH finds them at run time, but the linker needs a
  # hint.
  INTERFACE_LINK_OPTIONS "-Wl,--allow-shlib-undefined;-Wl,-rpath-link,${site_packages}/nvidia/cu13/lib")
