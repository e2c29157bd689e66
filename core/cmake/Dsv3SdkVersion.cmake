# cmake -DINCLUDE=<folder of dsv3/> -DVERSION=<x.y.z> -DOUTPUT=<file> -P Dsv3SdkVersion.cmake
# Writes dsv3/sdk/version.h: the SDK's version and a digest of its headers (sdk and support) without
# comments and blanks. The file is only touched when its text changes.
file(GLOB headers RELATIVE ${INCLUDE} ${INCLUDE}/dsv3/sdk/*.h ${INCLUDE}/dsv3/support/*.h)
list(SORT headers)
# Literals come first and are kept: what looks like a comment inside them is none.
set(string_literal [["([^"\]|\\.)*"]])
set(char_literal [['([^'\]|\\.)']])
set(line_comment [[//[^
]*]])
set(block_comment [[/\*([^*]|\*+[^*/])*\*+/]])
set(all "")
foreach(header IN LISTS headers)
  file(READ ${INCLUDE}/${header} text)
  string(REGEX REPLACE "(${string_literal}|${char_literal})|${line_comment}|${block_comment}" "\\1" text "${text}")
  string(REGEX REPLACE "[ \t\r\n]+" "" text "${text}")
  string(APPEND all "${header}\n${text}\n")
endforeach()
string(SHA256 digest "${all}")
string(SUBSTRING ${digest} 0 16 digest)
set(content "// Made by the build. Version of the SDK and digest of its headers; part of every plugin's stamp.
#pragma once

#define DSV3_SDK_VERSION \"${VERSION}\"
#define DSV3_SDK_HEADERS \"${digest}\"
")
set(old "")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} old)
endif()
if(NOT old STREQUAL content)
  file(WRITE ${OUTPUT} "${content}")
endif()
