# Runs during `cmake --install`: puts LibTorch without its Python parts into lib/dsv3/libtorch, so that the prefix works
# without this clone. Hard links take no space. On another file system, the files are copied: 1 GB, with the CUDA
# libraries 3.6 GB.
set(folder $ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/lib/dsv3/libtorch)
message(STATUS "Installing: ${folder}")
file(REMOVE_RECURSE ${folder})  # another version has other files
# The same relative paths as in site-packages, because LibTorch's RPATHs contain them.
file(GLOB_RECURSE files RELATIVE ${site_packages}
  ${site_packages}/torch/include/* ${site_packages}/torch/lib/*.so* ${site_packages}/nvidia/*/lib/*.so*)
list(FILTER files EXCLUDE REGEX "/lib(torch_python|shm).*\\.so")
foreach(file IN LISTS files)
  cmake_path(GET file PARENT_PATH parent)
  file(MAKE_DIRECTORY ${folder}/${parent})
  file(CREATE_LINK ${site_packages}/${file} ${folder}/${file} COPY_ON_ERROR)
endforeach()
