// The tables that say which processors, interrupt controllers and memory there are and how far apart: MADT, SRAT, SLIT.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/boot/acpi_tables.h"

namespace hk {

// Errors: as BuildAcpiTables(), kInvalidArgument.
absl::Status CheckTopology(const AcpiInput& input);

// REQUIRES of all three: CheckTopology(input) is OK.
std::vector<std::byte> BuildMadt(const AcpiInput& input);
std::vector<std::byte> BuildSrat(const AcpiInput& input);
std::vector<std::byte> BuildSlit(const AcpiInput& input);

}  // namespace hk
