// A file system in memory for RocksDB that forgets, at a crash, what was not synced: each file keeps what was synced
// and a random part of what follows.
#pragma once

#include <rocksdb/env.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>

#include "hyperkernel/base/check.h"

namespace hk {

// Thread-safe.
class LossyEnv final : public rocksdb::EnvWrapper {
 public:
  LossyEnv() : EnvWrapper(rocksdb::NewMemEnv(rocksdb::Env::Default())), memory_(target()) {}
  ~LossyEnv() override { delete memory_; }

  // From now on nothing is written: what the process does after its death.
  void Kill() { dead_ = true; }
  // The same after so many changes more.
  void KillAfter(int64_t changes) { left_ = changes; }
  bool dead() const { return dead_; }
  // Writes fail, removals do not: a full disk.
  void SetFull(bool full) { full_ = full; }
  // Only the process was killed: all that it wrote is there.
  void ReviveProcess() {
    left_ = kEndless;
    dead_ = false;
  }
  // The host comes back. REQUIRES: no file is open.
  void Revive(std::mt19937_64& random) {
    std::lock_guard lock(mutex_);
    for (auto& [name, file] : files_) {
      if (file.size == file.synced) continue;
      uint64_t keep = file.synced;
      if (random() % 2 == 0) keep += random() % (file.size - file.synced + 1);
      std::string content;
      HK_CHECK(rocksdb::ReadFileToString(memory_, name, &content).ok());
      content.resize(std::min<size_t>(content.size(), keep));
      HK_CHECK(rocksdb::WriteStringToFile(memory_, content, name, true).ok());
      file = {.size = content.size(), .synced = content.size()};
    }
    ReviveProcess();
  }
  uint64_t syncs() const { return syncs_; }

  rocksdb::Status NewWritableFile(const std::string& name, std::unique_ptr<rocksdb::WritableFile>* file,
                                  const rocksdb::EnvOptions& options) override {
    if (Refuses() || full_) return Refusal();
    return Wrap(name, 0, memory_->NewWritableFile(name, file, options), file);
  }
  rocksdb::Status ReopenWritableFile(const std::string& name, std::unique_ptr<rocksdb::WritableFile>* file,
                                     const rocksdb::EnvOptions& options) override {
    if (Refuses() || full_) return Refusal();
    uint64_t size = 0;
    memory_->GetFileSize(name, &size);
    return Wrap(name, size, memory_->ReopenWritableFile(name, file, options), file);
  }
  rocksdb::Status ReuseWritableFile(const std::string& name, const std::string& old,
                                    std::unique_ptr<rocksdb::WritableFile>* file,
                                    const rocksdb::EnvOptions& options) override {
    if (Refuses() || full_) return Refusal();
    const rocksdb::Status renamed = RenameFile(old, name);
    return renamed.ok() ? NewWritableFile(name, file, options) : renamed;
  }
  rocksdb::Status RenameFile(const std::string& from, const std::string& to) override {
    if (Refuses()) return Refusal();
    std::lock_guard lock(mutex_);
    const auto found = files_.find(from);
    if (found != files_.end()) {
      files_[to] = found->second;
      files_.erase(from);
    }
    return memory_->RenameFile(from, to);
  }
  rocksdb::Status DeleteFile(const std::string& name) override {
    if (Refuses()) return Refusal();
    std::lock_guard lock(mutex_);
    files_.erase(name);
    return memory_->DeleteFile(name);
  }

 private:
  // What is known of a file.
  struct File {
    uint64_t size = 0;
    uint64_t synced = 0;
  };
  // A file being written.
  class Lossy final : public rocksdb::WritableFileWrapper {
   public:
    Lossy(LossyEnv* env, std::string name, std::unique_ptr<rocksdb::WritableFile> file)
        : WritableFileWrapper(file.get()), env_(env), name_(std::move(name)), file_(std::move(file)) {}
    rocksdb::Status Append(const rocksdb::Slice& data) override {
      if (env_->Refuses() || env_->full_) return Refusal();
      env_->Grow(name_, data.size());
      return file_->Append(data);
    }
    rocksdb::Status Append(const rocksdb::Slice& data, const rocksdb::DataVerificationInfo&) override {
      return Append(data);
    }
    rocksdb::Status Sync() override { return env_->Refuses() ? Refusal() : (env_->Synced(name_), file_->Sync()); }
    rocksdb::Status Fsync() override { return Sync(); }

   private:
    LossyEnv* const env_;
    const std::string name_;
    const std::unique_ptr<rocksdb::WritableFile> file_;
  };

  static constexpr int64_t kEndless = int64_t{1} << 60;

  // A change is about to be made.
  bool Refuses() {
    if (left_.fetch_sub(1) <= 0) dead_ = true;
    return dead_;
  }
  static rocksdb::Status Refusal() { return rocksdb::Status::NoSpace("of the test"); }
  rocksdb::Status Wrap(const std::string& name, uint64_t size, const rocksdb::Status& opened,
                       std::unique_ptr<rocksdb::WritableFile>* file) {
    if (!opened.ok()) return opened;
    {
      std::lock_guard lock(mutex_);
      files_[name] = {.size = size, .synced = size};
    }
    *file = std::make_unique<Lossy>(this, name, std::move(*file));
    return opened;
  }
  void Grow(const std::string& name, size_t bytes) {
    std::lock_guard lock(mutex_);
    files_[name].size += bytes;
  }
  void Synced(const std::string& name) {
    ++syncs_;
    std::lock_guard lock(mutex_);
    files_[name].synced = files_[name].size;
  }

  rocksdb::Env* const memory_;
  std::atomic<bool> dead_{false}, full_{false};
  std::atomic<int64_t> left_{kEndless};
  std::atomic<uint64_t> syncs_{0};
  std::mutex mutex_;
  std::map<std::string, File> files_;
};

}  // namespace hk
