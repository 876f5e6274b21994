// `ramp profile --kernel-library`: somebody's kernel for the expert block, out of a shared library, beside
// ramp's own configs: its results checked against fp64, both timed by the same protocol, one profile and one
// fit.
//
// What runs here is the C ABI that a program would use (ramp_block_kernel_create and what follows): the
// command adds the layers, the timer, the check and a table of who won where.
#pragma once

#include "cli/profile_run.hpp"

namespace ramp::cli {

// Files get the kernel's name and the endings .kernel-profile.json and .kernel-fit.json, so that contexts,
// which have no launch for them, pass them over. ramp's configs are those that ship, whatever options.space
// says: a program that registers the library gets the same table. Throws Error for a library that cannot be
// opened, refuses, has no configs or computes something else, for options that have no meaning here, and
// where the profile to go on from was taken in another way.
Json profile_kernel_case(Io& io, const ProfileOptions& options, ramp_context* context, const ProfileCase& c);

}  // namespace ramp::cli
