# ramp_embed(<output.cpp> ROOTS <dirs> FILES <files>): text files as constants behind embedded_files()
# (src/backend/cuda/kernel_library.hpp), each under its path below the first of the roots that holds it. The
# output is made again when a file changes. This file is also the script that writes it (cmake -P).
if(NOT CMAKE_SCRIPT_MODE_FILE)
  set(RAMP_EMBED_SCRIPT ${CMAKE_CURRENT_LIST_FILE})
  function(ramp_embed output)
    cmake_parse_arguments(arg "" "" "ROOTS;FILES" ${ARGN})
    add_custom_command(
      OUTPUT ${output}
      COMMAND ${CMAKE_COMMAND} "-DOUTPUT=${output}" "-DROOTS=${arg_ROOTS}" "-DFILES=${arg_FILES}" -P ${RAMP_EMBED_SCRIPT}
      DEPENDS ${arg_FILES} ${RAMP_EMBED_SCRIPT}
      COMMENT "Embedding the kernels"
      VERBATIM)
  endfunction()
  return()
endif()

# Raw strings in pieces of whole lines, below the 64 KiB that a compiler must accept in one literal.
set(piece 16000)
set(delimiter "RAMP_TEXT")
set(names "")
foreach(file IN LISTS FILES)
  foreach(root IN LISTS ROOTS)
    cmake_path(IS_PREFIX root "${file}" NORMALIZE inside)
    if(inside)
      file(RELATIVE_PATH name "${root}" "${file}")
      break()
    endif()
  endforeach()
  list(APPEND names "${name}|${file}")
endforeach()
list(SORT names) # whatever order the file system gave

set(texts "")
set(table "")
set(index 0)
foreach(entry IN LISTS names)
  string(REGEX REPLACE "\\|.*" "" name "${entry}")
  string(REGEX REPLACE ".*\\|" "" file "${entry}")
  file(READ "${file}" text)
  string(FIND "${text}" ")${delimiter}\"" clash)
  if(NOT clash EQUAL -1)
    message(FATAL_ERROR "${file}: got ')${delimiter}\"' in the text, expected anything else; it ends the raw string")
  endif()
  string(APPEND texts "// ${name}\nconst char kText${index}[] =\n")
  string(LENGTH "${text}" left)
  while(left GREATER ${piece})
    string(SUBSTRING "${text}" 0 ${piece} head)
    string(FIND "${head}" "\n" at REVERSE)
    if(at EQUAL -1)
      message(FATAL_ERROR "${file}: got a line of over ${piece} bytes, expected shorter lines")
    endif()
    math(EXPR at "${at} + 1")
    string(SUBSTRING "${text}" 0 ${at} head)
    string(SUBSTRING "${text}" ${at} -1 text)
    string(APPEND texts "R\"${delimiter}(${head})${delimiter}\"\n")
    string(LENGTH "${text}" left)
  endwhile()
  string(APPEND texts "R\"${delimiter}(${text})${delimiter}\";\n")
  string(APPEND table "    {\"${name}\", {kText${index}, sizeof kText${index} - 1}},\n")
  math(EXPR index "${index} + 1")
endforeach()
file(WRITE "${OUTPUT}" "// Made by cmake/RampEmbed.cmake from the files named below. Do not edit.
#include \"backend/cuda/kernel_library.hpp\"

namespace ramp::core::cuda {
namespace {
${texts}
const EmbeddedFile kFiles[] = {
${table}};
}  // namespace

std::span<const EmbeddedFile> embedded_files() noexcept {
  return kFiles;
}

}  // namespace ramp::core::cuda
")
