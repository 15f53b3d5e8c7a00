#include "hyperkernel/node/kept_guests.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr std::string_view kSuffix = ".state";
constexpr std::string_view kUnfinished = ".state.";  // ReplaceFile was killed; guests' names have no dots

std::string NameOf(const MachineState& state) {
  return fmt::format("{}.{}", state.name, state.generation);
}

}  // namespace

absl::Status KeptGuests::Write(MachineState state) const {
  state.node_id = node_id_;
  state.boot_id = boot_id_;
  const std::vector<std::byte> bytes = EncodeMachineState(state);
  return ReplaceFile(fmt::format("{}/{}{}", frames_.directory(), NameOf(state), kSuffix),
                     {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, 0600);
}

absl::Status KeptGuests::Use(const MachineState& state) const {
  const std::string path = fmt::format("{}/{}{}", frames_.directory(), NameOf(state), kSuffix);
  if (HK_MUTANT(saved_machine_used_twice) || ::unlink(path.c_str()) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, path);
}

absl::StatusOr<MachineState> KeptGuests::Read(const std::string& path, const std::string& stem) const {
  HK_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMostMachineStateBytes));
  HK_ASSIGN_OR_RETURN(MachineState state, DecodeMachineState(std::as_bytes(std::span(text))));
  if (NameOf(state) != stem) return absl::FailedPreconditionError("saved machine: it is another one's");
  if (state.node_id != node_id_) return absl::FailedPreconditionError("saved machine: of another data directory");
  if (state.boot_id != boot_id_) return absl::FailedPreconditionError("saved machine: the host was restarted since");
  if (!state.failure.empty()) return absl::FailedPreconditionError(state.failure);
  return state;
}

absl::StatusOr<LeftGuests> KeptGuests::Look() const {
  std::vector<std::string> stems;
  std::error_code error;
  const std::filesystem::directory_iterator end;
  for (std::filesystem::directory_iterator at(frames_.directory(), error); !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name.size() > kSuffix.size() && name.ends_with(kSuffix)) {
      stems.push_back(name.substr(0, name.size() - kSuffix.size()));
    } else if (name.find(kUnfinished) != std::string::npos) {
      ::unlink(at->path().c_str());
    }
  }
  if (error) return ErrnoStatus(error.value(), frames_.directory());
  LeftGuests left;
  for (const std::string& stem : stems) {
    const std::string path = fmt::format("{}/{}{}", frames_.directory(), stem, kSuffix);
    absl::StatusOr<MachineState> state = Read(path, stem);
    if (state.ok()) {
      left.frame_files.insert(stem);
      left.states.push_back(*std::move(state));
    } else {
      ::unlink(path.c_str());
      left.refused[stem.substr(0, stem.rfind('.'))] = MessageOf(state.status());
    }
  }
  return left;
}

}  // namespace hk
