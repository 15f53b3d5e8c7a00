#include "hyperkernel/node/space_records.h"

#include <string>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr char kKeyPrefix[] = "space/";

std::string KeyOf(uint64_t id) {
  return fmt::format("{}{:016x}", kKeyPrefix, id);
}

}  // namespace

absl::Status SpaceRecords::Put(const SpaceIdentity& space, uint64_t epoch) {
  v1::SpaceRecord record;
  record.set_name(space.name);
  record.set_id(space.id);
  record.set_epoch(epoch);
  for (const SpaceMemberId& member : space.members) record.add_nodes(member.name);
  return store_->Put(KeyOf(space.id), record);
}

absl::Status SpaceRecords::Forget(uint64_t id) {
  return store_->Delete(KeyOf(id));
}

absl::StatusOr<std::vector<v1::SpaceRecord>> SpaceRecords::TakeLeftovers() {
  HK_ASSIGN_OR_RETURN(const auto entries, store_->List(kKeyPrefix));
  std::vector<v1::SpaceRecord> records;
  for (const auto& [key, value] : entries) {
    v1::SpaceRecord record;
    if (record.ParseFromString(value)) {
      records.push_back(std::move(record));
    } else {
      log::Warning("space", "the record of a space of an earlier daemon is damaged", {{"key", key}});
    }
    HK_RETURN_IF_ERROR(store_->Delete(key));
  }
  return records;
}

}  // namespace hk
