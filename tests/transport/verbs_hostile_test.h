// The tests of verbs_hostile_test.cc, for the program that has the back end.
#pragma once

#include "tests/transport/conformance.h"
#include "tests/transport/verbs_stranger.h"

namespace hk {

// Parameterised like the suite. REQUIRES: the back end's strangers are VerbsStrangers.
class VerbsHostile : public TransportConformance {};

}  // namespace hk
