# Installing: the library, its headers, the CMake package (find_package(ramp), target ramp::ramp), the pkg-config
# file and the licence. Components: ramp_runtime (what a program needs to run), ramp_development (what it needs
# to be built).
include(CMakePackageConfigHelpers)
set(RAMP_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/ramp)

install(TARGETS ramp EXPORT rampTargets
        RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT ramp_runtime
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ramp_runtime NAMELINK_COMPONENT ramp_development
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ramp_development)
install(FILES ${PROJECT_SOURCE_DIR}/include/ramp/ramp.h ${PROJECT_SOURCE_DIR}/include/ramp/dispatch.h
              ${PROJECT_SOURCE_DIR}/include/ramp/dispatch.hpp ${PROJECT_SOURCE_DIR}/include/ramp/ramp.hpp ${PROJECT_BINARY_DIR}/include/ramp/version.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ramp COMPONENT ramp_development)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT ramp_runtime)

install(EXPORT rampTargets NAMESPACE ramp:: DESTINATION ${RAMP_CMAKE_DIR} COMPONENT ramp_development)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/rampConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/cmake/rampConfig.cmake INSTALL_DESTINATION ${RAMP_CMAKE_DIR})
# The same promise as the SOVERSION: while the major version is 0, a minor version may break callers.
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(compatibility SameMinorVersion)
else()
  set(compatibility SameMajorVersion)
endif()
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/rampConfigVersion.cmake COMPATIBILITY ${compatibility})
install(FILES ${PROJECT_BINARY_DIR}/cmake/rampConfig.cmake ${PROJECT_BINARY_DIR}/cmake/rampConfigVersion.cmake
        DESTINATION ${RAMP_CMAKE_DIR} COMPONENT ramp_development)

# ramp.pc finds its prefix from its own place, so that an installed tree may be moved.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(RAMP_PC_PREFIX ${CMAKE_INSTALL_PREFIX})
  set(RAMP_PC_LIBDIR ${CMAKE_INSTALL_FULL_LIBDIR})
  set(RAMP_PC_INCLUDEDIR ${CMAKE_INSTALL_FULL_INCLUDEDIR})
else()
  file(RELATIVE_PATH up /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
  string(REGEX REPLACE "/$" "" up "${up}")
  set(RAMP_PC_PREFIX "\${pcfiledir}/${up}")
  set(RAMP_PC_LIBDIR "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
  set(RAMP_PC_INCLUDEDIR "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
# A program that links the static archive needs the C++ runtime and threads as well; pkg-config gives private
# libraries only with --static, so that an archive-only installation lists them openly.
if(BUILD_SHARED_LIBS)
  set(RAMP_PC_LIBS "")
  set(RAMP_PC_LIBS_PRIVATE "-lstdc++ -lm -pthread")
else()
  set(RAMP_PC_LIBS " -lstdc++ -lm -pthread")
  set(RAMP_PC_LIBS_PRIVATE "")
endif()
configure_file(${PROJECT_SOURCE_DIR}/cmake/ramp.pc.in ${PROJECT_BINARY_DIR}/cmake/ramp.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/cmake/ramp.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
        COMPONENT ramp_development)
