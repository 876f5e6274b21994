# ramp_room(<name> SOURCES ... [DEPS <rooms> ...]): one room of src/ as the static library ramp_<name>. A room may
# depend only on rooms before it in the flow; DEPS says which.
# ramp_test(<name> SOURCES ... ROOMS ...): one GoogleTest program, one ctest entry of the same name.
add_library(ramp_flags INTERFACE)
target_compile_options(ramp_flags INTERFACE -Wall -Wextra $<$<COMPILE_LANGUAGE:CXX>:-Wno-missing-field-initializers>)
if(RAMP_WERROR)
  target_compile_options(ramp_flags INTERFACE -Werror)
endif()
# Numerics: no fast-math, and no contraction of a*b+c except where the code writes fma.
target_compile_options(ramp_flags INTERFACE -ffp-contract=off)
if(RAMP_SANITIZE)
  target_compile_options(ramp_flags INTERFACE -fsanitize=${RAMP_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(ramp_flags INTERFACE -fsanitize=${RAMP_SANITIZE})
endif()

function(ramp_room name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  add_library(ramp_${name} STATIC ${arg_SOURCES})
  target_include_directories(ramp_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include
                                                 ${PROJECT_BINARY_DIR}/include)
  target_link_libraries(ramp_${name} PRIVATE ramp_flags PUBLIC fmt::fmt-header-only Threads::Threads)
  foreach(dep IN LISTS arg_DEPS)
    target_link_libraries(ramp_${name} PUBLIC ramp_${dep})
  endforeach()
  set_property(GLOBAL APPEND PROPERTY RAMP_ROOMS ramp_${name})
endfunction()

# What ./test --tsan builds: the tests labelled "threads".
add_custom_target(thread_tests)

function(ramp_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;ROOMS;LABELS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${name} PRIVATE ramp_flags GTest::gtest GTest::gtest_main)
  foreach(room IN LISTS arg_ROOMS)
    target_link_libraries(${name} PRIVATE ramp_${room})
  endforeach()
  target_compile_definitions(${name} PRIVATE RAMP_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 600)
  endif()
  if(RAMP_SANITIZE) # about ten times slower
    math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * 6")
  endif()
  # The JSON output feeds the case count that ./test prints.
  add_test(NAME ${name} COMMAND ${name} --gtest_output=json:${PROJECT_BINARY_DIR}/test-results/${name}.json --gtest_brief=1)
  set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "${arg_LABELS}")
  if(RAMP_SANITIZE MATCHES "address")
    set_tests_properties(${name} PROPERTIES ENVIRONMENT
                         "LSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0")
  elseif(RAMP_SANITIZE MATCHES "thread")
    set_tests_properties(${name} PROPERTIES ENVIRONMENT
                         "TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp:print_suppressions=0")
  endif()
  if("threads" IN_LIST arg_LABELS)
    add_dependencies(thread_tests ${name})
  endif()
endfunction()
