#include "hyperkernel/cli/replica_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string_view>

#include "hyperkernel/cli/output.h"

namespace hk::cli {
namespace {

void AppendLine(std::string* out, std::string_view key, std::string_view value) {
  fmt::format_to(std::back_inserter(*out), "{:<16}{}\n", fmt::format("{}:", key), value);
}

}  // namespace

std::string ReplicaText(const v1::Replica& replica, std::chrono::system_clock::time_point now) {
  const uint64_t asked = replica.hits() + replica.misses();
  std::string out;
  AppendLine(&out, "VM", Printable(replica.vm()));
  AppendLine(&out, "Disks", fmt::format("{} tracked", replica.disks()));
  AppendLine(&out, "Entries",
             replica.warm_entries() == 0
                 ? fmt::format("{} pages", replica.entries())
                 : fmt::format("{} pages, {} of them of runs before", replica.entries(), replica.warm_entries()));
  AppendLine(&out, "Warm frames", HumanBytes(replica.warm_bytes()));
  AppendLine(&out, "Hit ratio",
             asked == 0 ? "nothing was read"
                        : fmt::format("{:.1f} % ({} of {} blocks)",
                                      100.0 * static_cast<double>(replica.hits()) / static_cast<double>(asked),
                                      replica.hits(), asked));
  AppendLine(&out, "Saved", HumanBytes(replica.bytes_saved()));
  AppendLine(&out, "Removed", fmt::format("{} entries", replica.removed()));
  if (replica.recovered() > 0) {
    AppendLine(&out, "Recovered",
               replica.mismatched() == 0
                   ? fmt::format("{} entries of a daemon that was killed", replica.recovered())
                   : fmt::format("{} entries of a daemon that was killed, {} of them WRONG and dropped",
                                 replica.recovered(), replica.mismatched()));
  }
  AppendLine(&out, "Durable",
             replica.durable() ? "yes" : fmt::format("no: {}", Printable(replica.not_durable_because())));
  AppendLine(&out, "Table", HumanBytes(replica.table_bytes()));
  AppendLine(&out, "Age", Ago(replica.since(), now));
  AppendLine(&out, "Resets", fmt::to_string(replica.resets()));
  return out;
}

std::string VerificationText(const v1::ReplicaVerification& found) {
  // Entries come and go meanwhile: what was looked at may be more than there were.
  const uint64_t all = std::max(found.entries(), found.done());
  std::string out = found.finished() ? fmt::format("{} entries compared with the disks", found.done())
                                     : fmt::format("{} of {} entries", found.done(), all);
  if (found.gone() > 0) out += fmt::format(", {} went meanwhile", found.gone());
  if (found.wrong() > 0) {
    out += fmt::format(", {} WRONG and dropped (the first: {})", found.wrong(), Printable(found.first_wrong()));
  } else if (found.finished()) {
    out += ", none is wrong";
  }
  return out + "\n";
}

}  // namespace hk::cli
