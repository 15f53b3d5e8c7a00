// The node's durable state: keys and protobuf values in RocksDB. Thread-safe.
#pragma once

#include <google/protobuf/message_lite.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace rocksdb {
class DB;
}

namespace hk {

// One database in the node's data directory. A write is on disk when the call returns.
class StateStore {
 public:
  // REQUIRES: the caller holds the data directory's lock. Errors: what RocksDB says, with the path.
  static absl::StatusOr<std::unique_ptr<StateStore>> Open(const std::string& directory);
  ~StateStore();

  absl::Status Put(std::string_view key, const google::protobuf::MessageLite& value);
  absl::Status Delete(std::string_view key);
  // All entries whose key begins with `prefix`, by key: (key, serialised value).
  absl::StatusOr<std::vector<std::pair<std::string, std::string>>> List(std::string_view prefix) const;

 private:
  explicit StateStore(std::unique_ptr<rocksdb::DB> db);
  std::unique_ptr<rocksdb::DB> db_;
};

}  // namespace hk
