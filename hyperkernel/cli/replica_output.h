// What operators read of storage replicas. Pure functions; thread-safe.
#pragma once

#include <chrono>
#include <string>

#include "proto/replica.pb.h"

namespace hk::cli {

// `replica show`: one "key: value" line per fact.
std::string ReplicaText(const v1::Replica& replica, std::chrono::system_clock::time_point now);
// `replica verify`: how far it is, or what it has found, one line.
std::string VerificationText(const v1::ReplicaVerification& found);

}  // namespace hk::cli
