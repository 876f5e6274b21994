# The shared library exports exactly the functions that the C headers declare, and has the SONAME that goes with its
# version.
execute_process(COMMAND ${NM} -D --defined-only ${LIBRARY} OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^ \n]+ [A-Za-z] [^ \n]+" symbols "${text}")
list(TRANSFORM symbols REPLACE ".* " "")
list(SORT symbols)

set(header "")
foreach(name ramp.h dispatch.h)
  file(READ ${HEADERS}/${name} text)
  string(APPEND header "${text}")
endforeach()
string(REGEX REPLACE "/\\*([^*]|\\*+[^*/])*\\*+/" "" header "${header}")
string(REPLACE ";" "\n" header "${header}") # else each declaration becomes a list item
string(REGEX MATCHALL "RAMP_API [^()]*ramp_[a-z0-9_]+\\(" declared "${header}")
list(TRANSFORM declared REPLACE ".*(ramp_[a-z0-9_]+)\\(" "\\1")
list(SORT declared)
list(LENGTH declared count)
if(count LESS 20)
  message(FATAL_ERROR "found only ${count} functions in ${HEADERS}: the expression here no longer fits it")
endif()
if(NOT symbols STREQUAL declared)
  message(FATAL_ERROR "exported: ${symbols}\ndeclared: ${declared}")
endif()

execute_process(COMMAND ${OBJDUMP} -p ${LIBRARY} OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
if(NOT text MATCHES "SONAME +${SONAME}\n")
  message(FATAL_ERROR "SONAME is not ${SONAME}")
endif()
