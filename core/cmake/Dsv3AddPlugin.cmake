# dsv3_add_plugin(NAME PROVIDES kind/name ... SOURCES a.cpp ... [VERSION v] [STATUS s] [SUMMARY text] [LINK lib ...])
# Builds one plugin library; the same call inside and outside the tree.
function(dsv3_add_plugin name)
  cmake_parse_arguments(arg "" "VERSION;STATUS;SUMMARY" "PROVIDES;SOURCES;LINK" ${ARGN})
  add_library(${name} MODULE ${arg_SOURCES})
  set_target_properties(${name} PROPERTIES
    OUTPUT_NAME dsv3_${name} LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/dsv3/plugins
    CXX_VISIBILITY_PRESET hidden)
  target_link_libraries(${name} PRIVATE dsv3 ${arg_LINK})
  target_link_options(${name} PRIVATE -Wl,--no-undefined)
  target_precompile_headers(${name} REUSE_FROM dsv3_plugin_pch)
endfunction()
