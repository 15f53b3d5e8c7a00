// Byte forms of plain values: little-endian, no padding. A form is one function template that names the fields in their
// order; the writer and the reader both walk it, so that they cannot differ:
//
//   template <typename Archive>
//   void Fields(Archive& a, Archived<Archive, Thing>& thing) {
//     a.Numbers(thing.size, thing.flags);
//     a.Bytes(thing.name, kMostNameBytes);
//   }
//
// Neither is thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/check.h"

namespace hk {

// Appends to a byte string.
class ByteWriter {
 public:
  static constexpr bool kReads = false;

  template <typename T>
  void Number(const T& value) {
    static_assert(std::is_integral_v<T>);
    uint64_t number = 0;
    if constexpr (std::is_same_v<T, bool>) {
      number = value ? 1 : 0;
    } else {
      number = static_cast<uint64_t>(static_cast<std::make_unsigned_t<T>>(value));
    }
    for (size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<std::byte>(number >> (8 * i)));
  }
  template <typename... T>
  void Numbers(const T&... values) {
    (Number(values), ...);
  }
  // An enumeration whose values are 0 to `last`, as one byte; `unknown` says what another value is.
  template <typename T>
  void Choice(const T& value, T, const char*) {
    Number(static_cast<uint8_t>(value));
  }
  // How many elements a list has. REQUIRES: at most `most`.
  template <typename List>
  void Count(const List& list, size_t most) {
    HK_CHECK(list.size() <= most);
    Number(static_cast<uint32_t>(list.size()));
  }
  // As they are, without their count.
  void Raw(std::span<const std::byte> bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  // Count and bytes.
  void Bytes(const std::vector<std::byte>& bytes, size_t most) {
    Count(bytes, most);
    Raw(bytes);
  }
  void Text(const std::string& text, size_t most) {
    Count(text, most);
    Raw(std::as_bytes(std::span(text)));
  }
  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Reads what may be anything. After the first error everything reads as zero and nothing grows.
class ByteReader {
 public:
  static constexpr bool kReads = true;

  explicit ByteReader(std::span<const std::byte> bytes) : left_(bytes) {}

  template <typename T>
  void Number(T& value) {
    static_assert(std::is_integral_v<T>);
    value = 0;
    if (left_.size() < sizeof(T)) return Fail("it ends early");
    uint64_t number = 0;
    for (size_t i = 0; i < sizeof(T); ++i) number |= static_cast<uint64_t>(left_[i]) << (8 * i);
    if constexpr (std::is_same_v<T, bool>) {
      if (number > 1) return Fail("neither true nor false");
    }
    value = static_cast<T>(number);
    left_ = left_.subspan(sizeof(T));
  }
  template <typename... T>
  void Numbers(T&... values) {
    (Number(values), ...);
  }
  template <typename T>
  void Choice(T& value, T last, const char* unknown) {
    uint8_t number = 0;
    Number(number);
    if (number > static_cast<uint8_t>(last)) return Fail(unknown);
    value = static_cast<T>(number);
  }
  // Gives the list as many elements as there are.
  template <typename List>
  void Count(List& list, size_t most) {
    uint32_t count = 0;
    Number(count);
    if (count > most) return Fail("a list is too long");
    list.assign(failure_ == nullptr ? count : 0, typename List::value_type{});
  }
  void Raw(std::span<std::byte> bytes) {
    if (left_.size() < bytes.size()) return Fail("it ends early");
    if (!bytes.empty()) std::memcpy(bytes.data(), left_.data(), bytes.size());
    left_ = left_.subspan(bytes.size());
  }
  void Bytes(std::vector<std::byte>& bytes, size_t most) {
    Count(bytes, most);
    Raw(bytes);
  }
  void Text(std::string& text, size_t most) {
    Count(text, most);
    Raw(std::as_writable_bytes(std::span(text)));
  }
  // What follows is not believed.
  void Fail(const char* why) {
    if (failure_ == nullptr) failure_ = why;
    left_ = {};
  }
  // Null: nothing has failed.
  const char* failure() const { return failure_; }
  size_t left() const { return left_.size(); }
  // The end was reached, and all was well. Errors: kInvalidArgument: one line that begins with `what`.
  absl::Status Done(std::string_view what) {
    if (failure_ == nullptr && !left_.empty()) Fail("bytes are left over");
    if (failure_ == nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError(std::string(what) + ": " + failure_);
  }

 private:
  std::span<const std::byte> left_;
  const char* failure_ = nullptr;
};

// const for the writer, not for the reader.
template <typename Archive, typename T>
using Archived = std::conditional_t<Archive::kReads, T, const T>;

// The versioned form of a device's state: u16 version, then its fields. `fields` is called with the archive.
template <typename Fields>
std::vector<std::byte> WriteVersioned(uint16_t version, Fields fields) {
  ByteWriter writer;
  writer.Number(version);
  fields(writer);
  return writer.Take();
}

// Errors: kInvalidArgument: one line that begins with `what`; `fields` may have been called then.
template <typename Fields>
absl::Status ReadVersioned(std::string_view what, uint16_t version, std::span<const std::byte> bytes, Fields fields) {
  ByteReader reader(bytes);
  uint16_t found = 0;
  reader.Number(found);
  if (reader.failure() == nullptr && found != version) {
    return absl::InvalidArgumentError(std::string(what) + ": version " + std::to_string(found) + ", expected " +
                                      std::to_string(version));
  }
  fields(reader);
  return reader.Done(what);
}

}  // namespace hk
