// How a histogram of times is told, by the daemon of what it counted and by hkctl of what was counted in between. Pure;
// thread-safe.
#pragma once

#include "proto/space.pb.h"

namespace hk {

// Sets all but the buckets from the buckets: bucket [i] holds times from 2^i ns to 2^(i+1) ns, and is told as its
// middle, the greatest as its end. Buckets beyond 64 bits are only counted.
void SummarizeBuckets(v1::FaultLatency* latency);

}  // namespace hk
