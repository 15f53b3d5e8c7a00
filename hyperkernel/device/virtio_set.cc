#include "hyperkernel/device/virtio_set.h"

#include <utility>

#include "hyperkernel/base/status.h"

namespace hk {

absl::StatusOr<std::unique_ptr<VirtioSet>> VirtioSet::Create(GuestMemory* memory, PciRoot* root,
                                                             InterruptSink* interrupts, std::string guest) {
  std::unique_ptr<VirtioSet> set(new VirtioSet(memory, root, interrupts, std::move(guest)));
  HK_ASSIGN_OR_RETURN(set->pins_, DmaPins::Create(*memory));
  return set;
}

VirtioSet::~VirtioSet() {
  for (Member& member : members_) member.loop->Stop();
}

absl::Status VirtioSet::Add(uint8_t slot, std::string name, std::unique_ptr<VirtioDevice> device) {
  Member member;
  member.device = std::move(device);
  HK_ASSIGN_OR_RETURN(member.space, DmaSpace::Create(memory_, pins_.get()));
  HK_ASSIGN_OR_RETURN(member.loop, WorkLoop::Create(guest_.empty() ? name : name + ":" + guest_));
  member.name = name;
  if (!guest_.empty()) name = guest_ + "/" + name;
  member.transport = std::make_unique<VirtioPci>(std::move(name), member.device.get(), member.space.get(),
                                                 member.loop.get(), interrupts_);
  if (member.device->rings_often()) HK_RETURN_IF_ERROR(member.transport->MakeDoorbells());
  HK_RETURN_IF_ERROR(root_->Add(slot, member.transport.get()));
  members_.push_back(std::move(member));
  return absl::OkStatus();
}

absl::Status VirtioSet::Start() {
  for (Member& member : members_) HK_RETURN_IF_ERROR(member.loop->Start());
  return absl::OkStatus();
}

// Devices first: they finish their I/O while memory is still open to them. Blocking is then the proof that none has a
// page left.
absl::Status VirtioSet::ResetAndBlock(Monotonic deadline) {
  for (Member& member : members_) member.transport->RequestReset();
  for (Member& member : members_) HK_RETURN_IF_ERROR(member.transport->ResetAndWait(deadline));
  for (Member& member : members_) HK_RETURN_IF_ERROR(member.space->Block(deadline));
  return absl::OkStatus();
}

absl::Status VirtioSet::Hold(Monotonic deadline) {
  for (Member& member : members_) member.loop->Stop();
  for (Member& member : members_) {
    if (absl::Status status = member.transport->Drain(deadline); !status.ok()) {
      const absl::Status again = GoOn();
      if (!again.ok()) return WithContext(again, MessageOf(status));
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status VirtioSet::GoOn() {
  return Start();
}

void VirtioSet::SaveStates(const std::function<void(const std::string& name, std::vector<std::byte> bytes)>& put) {
  for (Member& member : members_) put(member.name, member.transport->SaveState());
}

absl::Status VirtioSet::RestoreStates(
    const std::function<absl::StatusOr<std::span<const std::byte>>(const std::string& name)>& find) {
  for (Member& member : members_) {
    HK_ASSIGN_OR_RETURN(const std::span<const std::byte> bytes, find(member.name));
    HK_RETURN_IF_ERROR(member.transport->RestoreState(bytes));
  }
  return absl::OkStatus();
}

void VirtioSet::Unblock() {
  for (Member& member : members_) {
    member.space->Unblock();
    member.transport->RingAll();
  }
}

std::vector<std::string> VirtioSet::Broken() const {
  std::vector<std::string> names;
  for (const Member& member : members_) {
    if (member.transport->broken()) names.push_back(member.name);
  }
  return names;
}

void VirtioSet::HarvestDirty(const std::function<void(Gfn)>& page) {
  for (Member& member : members_) member.space->HarvestDirty(page);
}

}  // namespace hk
