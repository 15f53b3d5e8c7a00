// What operators read of spaces. Pure functions; thread-safe.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "proto/admin.pb.h"
#include "proto/space.pb.h"

namespace hk::cli {

// "running", "stopped", ...; "unknown" if a node did not say.
std::string StateName(v1::SpaceState state);
// `space list`.
std::string SpaceTable(const std::vector<v1::Space>& spaces, std::chrono::system_clock::time_point now);
// `space show`.
std::string SpaceText(const v1::Space& space, std::chrono::system_clock::time_point now);
// `space map`: one row per extent, a column per node with its pages by right.
std::string SpaceMapText(const v1::SpaceMapResponse& map);
// `space top`: one row per node, then the pages that go to and fro. What happened is in `rates` (AddRates).
std::string SpaceTopText(const v1::SpaceTopResponse& top);
// "1.5 us", "230 us", "12 ms".
std::string HumanNanoseconds(uint64_t ns);
// Bytes at an address, 16 to a line, as hexdump -C has them; lines that repeat the one before are a "*".
std::string HexDump(uint64_t address, std::string_view bytes);

}  // namespace hk::cli
