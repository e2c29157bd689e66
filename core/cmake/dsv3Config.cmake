# find_package(dsv3 CONFIG): the target dsv3::sdk and the function dsv3_add_plugin().
include(CMakeFindDependencyMacro)
find_dependency(nlohmann_json)
cmake_path(SET LIBTORCH_ROOT NORMALIZE ${CMAKE_CURRENT_LIST_DIR}/../../dsv3/libtorch/torch)
include(${CMAKE_CURRENT_LIST_DIR}/LibTorchTarget.cmake)
include(${CMAKE_CURRENT_LIST_DIR}/dsv3Targets.cmake)
include(${CMAKE_CURRENT_LIST_DIR}/Dsv3AddPlugin.cmake)
if(CMAKE_EXPORT_COMPILE_COMMANDS STREQUAL "")  # project() sets it to "" unless the user has set it
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
endif()
