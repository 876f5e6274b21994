# Installs the library, moves the tree, and builds and runs the examples against it as a user would: through
# find_package(ramp) and through pkg-config. Run by ctest with the variables that CMakeLists.txt gives.
set(work ${BUILD}/packaging-test)
set(prefix "${work}/moved prefix") # a space, to see that paths are quoted where they have to be
file(REMOVE_RECURSE ${work})
file(MAKE_DIRECTORY ${work})

function(run what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}): ${ARGN}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

function(run_example program)
  run("running ${program}" ${program})
  if(NOT output MATCHES "ramp ${VERSION}.*y\\[0\\] = 15\\.75, expected 15\\.75")
    message(FATAL_ERROR "${program} printed: ${output}")
  endif()
endfunction()

foreach(component ramp_runtime ramp_development)
  run("installing ${component}" ${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/first --component ${component})
endforeach()
file(RENAME ${work}/first ${prefix})
foreach(file ${INCLUDEDIR}/ramp/ramp.h ${INCLUDEDIR}/ramp/dispatch.h ${INCLUDEDIR}/ramp/ramp.hpp ${INCLUDEDIR}/ramp/version.h ${DOCDIR}/LICENSE
             ${LIBDIR}/pkgconfig/ramp.pc ${LIBDIR}/cmake/ramp/rampConfig.cmake
             ${LIBDIR}/cmake/ramp/rampConfigVersion.cmake ${LIBDIR}/cmake/ramp/rampTargets.cmake)
  if(NOT EXISTS ${prefix}/${file})
    message(FATAL_ERROR "not installed: ${file}")
  endif()
endforeach()
if(SHARED AND NOT EXISTS ${prefix}/${LIBDIR}/libramp.so.${VERSION})
  message(FATAL_ERROR "not installed: libramp.so.${VERSION}")
endif()

# find_package
set(flags "-DCMAKE_C_FLAGS=${SANITIZE} -Wall -Wextra -Werror" "-DCMAKE_CXX_FLAGS=${SANITIZE} -Wall -Wextra -Werror")
if(LAUNCHER)
  list(APPEND flags -DCMAKE_C_COMPILER_LAUNCHER=${LAUNCHER} -DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER})
endif()
set(configure ${CMAKE_COMMAND} -S ${SOURCE}/examples -G ${GENERATOR} -DCMAKE_C_COMPILER=${CC}
              -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_PREFIX_PATH=${prefix} ${flags})
run("configuring the examples" ${configure} -B ${work}/examples)
run("building the examples" ${CMAKE_COMMAND} --build ${work}/examples)
run_example(${work}/examples/expert_block_c)
run_example(${work}/examples/expert_block_cpp)
run("running third_party_cpu" ${work}/examples/third_party_cpu 2 1 32 32)

# A version that was not installed must not be found.
file(WRITE ${work}/other/CMakeLists.txt
     "cmake_minimum_required(VERSION 3.25)\nproject(other LANGUAGES NONE)\nfind_package(ramp 99.0 REQUIRED)\n")
execute_process(COMMAND ${CMAKE_COMMAND} -S ${work}/other -B ${work}/other/build -G ${GENERATOR}
                        -DCMAKE_PREFIX_PATH=${prefix} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(result EQUAL 0 OR NOT output MATCHES "version: ${VERSION}")
  message(FATAL_ERROR "find_package(ramp 99.0) should have named version ${VERSION} and failed: ${output}")
endif()

# pkg-config
set(ENV{PKG_CONFIG_PATH} ${prefix}/${LIBDIR}/pkgconfig)
run("pkg-config --modversion" ${PKG_CONFIG} --modversion ramp)
string(STRIP "${output}" output)
if(NOT output STREQUAL VERSION)
  message(FATAL_ERROR "ramp.pc has version ${output}, the library ${VERSION}")
endif()
run("pkg-config --cflags --libs" ${PKG_CONFIG} --cflags --libs ramp)
separate_arguments(pc UNIX_COMMAND "${output}")
set(rpath "-Wl,-rpath,${prefix}/${LIBDIR}")
run("building the C example with pkg-config's flags"
    ${CC} -std=c11 ${SANITIZE} ${SOURCE}/examples/expert_block.c -o ${work}/pc_c ${pc} ${rpath})
run("building the C++ example with pkg-config's flags"
    ${LAUNCHER} ${CXX} -std=c++20 ${SANITIZE} -I${prefix}/${INCLUDEDIR} -c ${SOURCE}/examples/expert_block.cpp -o ${work}/pc_cpp.o)
run("linking the C++ example with pkg-config's flags" ${CXX} ${SANITIZE} ${work}/pc_cpp.o -o ${work}/pc_cpp ${pc} ${rpath})
run_example(${work}/pc_c)
run_example(${work}/pc_cpp)
