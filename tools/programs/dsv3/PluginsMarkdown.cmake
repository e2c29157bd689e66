# cmake -DDSV3=<program> -DREGISTRY=<file> -DOUTPUT=<file> -P PluginsMarkdown.cmake
# Writes docs/plugins.md: every component of the registry with its options, from the schemas.
function(run output)
  execute_process(COMMAND ${DSV3} plugins ${ARGN} --plugin-path ${REGISTRY} WORKING_DIRECTORY ${CMAKE_CURRENT_LIST_DIR}
    OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  set(${output} "${text}" PARENT_SCOPE)
endfunction()

set(all "# Plugins\n\nGenerated from the plugins' schemas by `ninja -C build update_readmes`; do not edit. `dsv3 plugins list` and\n`dsv3 plugins describe KIND/NAME` print the same in a terminal.\n")
run(plugins list --json)
string(JSON last LENGTH "${plugins}")
math(EXPR last "${last} - 1")
foreach(i RANGE ${last})
  foreach(field kind name summary docs status)
    string(JSON ${field} GET "${plugins}" ${i} ${field})
  endforeach()
  run(table describe ${kind}/${name} --markdown)
  string(APPEND all "\n## ${kind}/${name}\n\n[${summary}](../${docs}). Status: ${status}.\n\n${table}")
endforeach()
file(WRITE ${OUTPUT} "${all}")
