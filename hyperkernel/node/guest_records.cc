#include "hyperkernel/node/guest_records.h"

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr char kKeyPrefix[] = "vm/";

}  // namespace

absl::StatusOr<std::vector<v1::VmRecord>> GuestRecords::List() const {
  HK_ASSIGN_OR_RETURN(const auto entries, store_->List(kKeyPrefix));
  std::vector<v1::VmRecord> records;
  for (const auto& [key, value] : entries) {
    v1::VmRecord record;
    if (!record.ParseFromString(value)) return absl::DataLossError(fmt::format("state store: {} is damaged", key));
    records.push_back(std::move(record));
  }
  return records;
}

absl::Status GuestRecords::Put(const v1::VmRecord& record) {
  return store_->Put(kKeyPrefix + record.spec().name(), record);
}

absl::Status GuestRecords::Delete(const std::string& name) {
  return store_->Delete(kKeyPrefix + name);
}

}  // namespace hk
