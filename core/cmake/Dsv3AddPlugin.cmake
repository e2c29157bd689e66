# dsv3_add_plugin(NAME PROVIDES kind/name ... SOURCES a.cpp ... [VERSION v] [STATUS s] [SUMMARY text ...] [LINK lib ...])
# Builds one plugin library with its stamp, and adds its entries to the registry. Works inside and outside this tree.
#   PROVIDES  the components it registers, e.g. attention/mla; the loader checks that they agree
#   VERSION   default: the project's version
#   STATUS    stable (default), experimental or wip
#   SUMMARY   one line for all components, or one line for each, in the order of PROVIDES
#   LINK      libraries that only this plugin needs; shared libraries of the project are built and installed beside it
# Variables that a project may set before the call:
#   DSV3_PLUGIN_PREFIX  prefix of lib/dsv3/plugins (libraries) and registries; default: the build folder
#   DSV3_REGISTRY_SET   name of the registry; default: the project's name
set(DSV3_CMAKE_DIR ${CMAKE_CURRENT_LIST_DIR})

function(dsv3_add_plugin name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "VERSION;STATUS" "SUMMARY;PROVIDES;SOURCES;LINK")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "dsv3_add_plugin(${name}): unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  foreach(needed PROVIDES SOURCES SUMMARY)
    if(NOT arg_${needed})
      message(FATAL_ERROR "dsv3_add_plugin(${name}): ${needed} is missing")
    endif()
  endforeach()
  foreach(component IN LISTS arg_PROVIDES)
    if(NOT component MATCHES "^[a-z_]+/[a-z0-9_]+$")
      message(FATAL_ERROR "dsv3_add_plugin(${name}): PROVIDES must be kind/name in lower case, not '${component}'")
    endif()
  endforeach()
  # Of each list, the first value that is set.
  list(APPEND arg_VERSION ${PROJECT_VERSION} 0.0.0)
  list(GET arg_VERSION 0 arg_VERSION)
  list(APPEND arg_STATUS stable)
  list(GET arg_STATUS 0 arg_STATUS)
  set(prefix ${DSV3_PLUGIN_PREFIX} ${CMAKE_BINARY_DIR})
  list(GET prefix 0 prefix)
  if(NOT arg_STATUS MATCHES "^(stable|experimental|wip)$")
    message(FATAL_ERROR "dsv3_add_plugin(${name}): STATUS must be stable, experimental or wip, not '${arg_STATUS}'")
  endif()

  string(REPLACE ";" "," provides "${arg_PROVIDES}")
  set(stamp ${CMAKE_CURRENT_BINARY_DIR}/${name}_stamp.cpp)
  configure_file(${DSV3_CMAKE_DIR}/stamp.cpp.in ${stamp} @ONLY)
  add_library(${name} MODULE ${arg_SOURCES} ${stamp})
  target_compile_features(${name} PRIVATE cxx_std_20)
  set_target_properties(${name} PROPERTIES
    OUTPUT_NAME dsv3_${name} PREFIX lib SUFFIX .so LIBRARY_OUTPUT_DIRECTORY ${prefix}/lib/dsv3/plugins
    CXX_EXTENSIONS OFF CXX_VISIBILITY_PRESET hidden
    # The plugin's own folder, for its private libraries, and the folders of libdsv3 and LibTorch, as seen from a plugin in
    # the same prefix. In another prefix, the plugin uses the ones that the program has already loaded.
    BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "$ORIGIN;$ORIGIN/../..;$ORIGIN/../libtorch/torch/lib")
  target_link_libraries(${name} PRIVATE dsv3::sdk ${arg_LINK})
  get_target_property(outside_tree dsv3::sdk IMPORTED)
  set_target_properties(${name} PROPERTIES INSTALL_RPATH_USE_LINK_PATH ${outside_tree})
  dsv3_place_libraries(${prefix}/lib/dsv3/plugins ${arg_LINK})
  target_link_options(${name} PRIVATE -Wl,--no-undefined)

  set(definitions "DSV3_STAMP_COMPILER=\"${CMAKE_CXX_COMPILER_ID}-${CMAKE_CXX_COMPILER_VERSION}\"")
  if(arg_SOURCES MATCHES "\\.cu(;|$)" AND CMAKE_CUDA_COMPILER_VERSION)
    string(REGEX MATCH "^[0-9]+" cuda_major ${CMAKE_CUDA_COMPILER_VERSION})
    list(APPEND definitions "DSV3_STAMP_CUDA=\"${cuda_major}\"")
  endif()
  set_source_files_properties(${stamp} PROPERTIES COMPILE_DEFINITIONS "${definitions}" SKIP_PRECOMPILE_HEADERS ON)
  dsv3_share_plugin_pch(${name} ${arg_SOURCES})

  dsv3_register_plugin(${name} ${prefix})
  # Installing may strip the library, so its digest is written again.
  add_custom_command(TARGET ${name} POST_BUILD VERBATIM
    COMMAND ${CMAKE_COMMAND} -DLIBRARY=$<TARGET_FILE:${name}> -P ${DSV3_CMAKE_DIR}/Dsv3Seal.cmake)
  install(TARGETS ${name} LIBRARY DESTINATION lib/dsv3/plugins)
  install(CODE "set(LIBRARY \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/lib/dsv3/plugins/libdsv3_${name}.so\")
include([[${DSV3_CMAKE_DIR}/Dsv3Seal.cmake]])")
endfunction()

# Builds and installs the shared libraries of this project that a plugin links in the plugin's folder, where it finds them.
function(dsv3_place_libraries folder)
  foreach(library IN LISTS ARGN)
    if(TARGET ${library})
      get_target_property(type ${library} TYPE)
      get_target_property(imported ${library} IMPORTED)
      if(type STREQUAL SHARED_LIBRARY AND NOT imported)
        set_target_properties(${library} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${folder})
        install(TARGETS ${library} LIBRARY DESTINATION lib/dsv3/plugins)
      endif()
    endif()
  endforeach()
endfunction()

# Creates the target dsv3_plugin_pch, a precompiled header for all plugins of a project. They must hide their symbols too.
function(dsv3_add_plugin_pch header)
  set(source ${CMAKE_CURRENT_BINARY_DIR}/plugin_pch.cpp)
  file(CONFIGURE OUTPUT ${source} CONTENT "")  # does not rewrite an unchanged file
  add_library(dsv3_plugin_pch OBJECT EXCLUDE_FROM_ALL ${source})
  target_compile_features(dsv3_plugin_pch PRIVATE cxx_std_20)
  set_target_properties(dsv3_plugin_pch PROPERTIES
    CXX_EXTENSIONS OFF CXX_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(dsv3_plugin_pch PRIVATE dsv3::sdk)
  target_precompile_headers(dsv3_plugin_pch PRIVATE ${header})
endfunction()

# Lets a plugin use the precompiled header if one of its sources includes all of ATen or part of torch. Files without
# tensors compile faster without it.
function(dsv3_share_plugin_pch name)
  foreach(source IN LISTS ARGN)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
    if(EXISTS ${source})  # it may be generated later
      file(STRINGS ${source} includes REGEX "^#include [<\"](ATen/ATen|torch/[a-z/_]+)\\.h[>\"]")
      list(APPEND tensors ${includes})
    endif()
  endforeach()
  if(tensors)
    if(NOT TARGET dsv3_plugin_pch)
      dsv3_add_plugin_pch(<ATen/ATen.h>)
    endif()
    target_precompile_headers(${name} REUSE_FROM dsv3_plugin_pch)
  endif()
endfunction()

# Records the registry entries of one plugin. The registry is written after all folders have been processed.
function(dsv3_register_plugin name prefix)
  set(set ${DSV3_REGISTRY_SET} ${PROJECT_NAME})
  list(GET set 0 set)
  set(docs "")
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/README.md)
    cmake_path(RELATIVE_PATH CMAKE_CURRENT_SOURCE_DIR BASE_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE docs)
    set(docs ${docs}/README.md)
  endif()
  foreach(component IN LISTS arg_PROVIDES)
    list(POP_FRONT arg_SUMMARY next)
    if(next)
      string(REPLACE "\\" "\\\\" summary "${next}")
      string(REPLACE "\"" "\\\"" summary "${summary}")
    endif()
    string(REGEX MATCH "^[^/]+" kind ${component})
    string(REGEX MATCH "[^/]+$" short ${component})
    get_property(known GLOBAL PROPERTY dsv3_registry_${set})
    if(component IN_LIST known)
      message(FATAL_ERROR "dsv3_add_plugin(${name}): registry '${set}' already has ${component}, from another plugin")
    endif()
    set_property(GLOBAL APPEND PROPERTY dsv3_registry_${set} ${component})
    set_property(GLOBAL PROPERTY dsv3_registry_${set}_${component}
      "\n[[plugin]]\nkind = \"${kind}\"\nname = \"${short}\"\nlibrary = \"libdsv3_${name}.so\"\nversion = \"${arg_VERSION}\"\nstatus = \"${arg_STATUS}\"\nsummary = \"${summary}\"\ndocs = \"${docs}\"\n")
  endforeach()
  dsv3_write_registry_later(${set} ${prefix})
  # A project may create this target to build all plugins of a registry at once.
  if(TARGET dsv3_plugins_${set})
    add_dependencies(dsv3_plugins_${set} ${name})
  endif()
endfunction()

# Schedules <prefix>/registries/<set>.toml to be written at the end of the configuration, and installed.
function(dsv3_write_registry_later set prefix)
  get_property(arranged GLOBAL PROPERTY dsv3_registry_arranged_${set})
  if(NOT arranged)
    set_property(GLOBAL PROPERTY dsv3_registry_arranged_${set} ON)
    set(file ${prefix}/registries/${set}.toml)
    cmake_language(EVAL CODE
      "cmake_language(DEFER DIRECTORY [[${CMAKE_SOURCE_DIR}]] CALL dsv3_write_registry [[${set}]] [[${file}]])")
    install(FILES ${file} DESTINATION registries)
  endif()
endfunction()

# Writes the registry: header, plugins in order, then the hand-written part (a file, property dsv3_registry_<set>_aliases).
function(dsv3_write_registry set file)
  get_property(components GLOBAL PROPERTY dsv3_registry_${set})
  list(SORT components)
  set(text "# Generated by the build from the dsv3_add_plugin() calls; do not edit.\nregistry = 1\nset = \"${set}\"\n")
  foreach(component IN LISTS components)
    get_property(entry GLOBAL PROPERTY dsv3_registry_${set}_${component})
    string(APPEND text "${entry}")
  endforeach()
  get_property(aliases GLOBAL PROPERTY dsv3_registry_${set}_aliases)
  if(aliases)
    file(READ ${aliases} more)
    string(APPEND text "\n${more}")
  endif()
  file(CONFIGURE OUTPUT ${file} CONTENT "@text@" @ONLY)  # does not rewrite an unchanged file
endfunction()
