// The spaces that this node takes part in. Thread-safe.
//
// The node that is asked to make a space coordinates it: it alone attaches and deletes. Spaces live in the daemons'
// memory: a node's restart ends its part, and what is left stops.
//
// Invariants:
//  1. A space is made on all its nodes or on none: what was attached when one failed is detached again.
//  2. A coordinator knows a space from before the first node attaches it until after all have been told to leave. So a
//     space that its coordinator does not know is over, and a member drops it: whatever was lost on the way, a member
//     names its spaces in every hello to their coordinator and hears which are over.
//  3. One name, one space; one operation at a time makes or deletes it.
//  4. The table's lock is never held over a call of a space, a peer or a wait.
//
// Bad input: the table in README.md, "Spaces".
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/space_drain.h"
#include "hyperkernel/node/space_part.h"
#include "hyperkernel/node/space_peers.h"
#include "hyperkernel/node/space_records.h"
#include "hyperkernel/node/space_recovery.h"
#include "hyperkernel/node/space_rules.h"
#include "hyperkernel/node/space_sample.h"
#include "proto/admin.pb.h"
#include "proto/peer.pb.h"

namespace hk {

// All spaces of one node.
class SpaceManager {
 public:
  // `self` is this node. `peers`, `clock` and `records`, and what the factory uses, outlive the manager. `records` may
  // be null: nothing is kept on disk.
  SpaceManager(std::string self, SpaceFactory factory, SpacePeers* peers, const Clock& clock,
               SpaceRecords* records = nullptr);
  // REQUIRES: no call is under way or comes.
  ~SpaceManager();

  // For operators. Errors: for people; kNotFound for a name that is no space's here.
  absl::StatusOr<v1::Space> Create(const v1::CreateSpaceRequest& request);
  std::vector<v1::Space> List() const;
  // With every node's part.
  absl::StatusOr<v1::Space> Get(const std::string& name) const;
  // Returns what is left to be done and will be, one line each.
  absl::StatusOr<std::vector<std::string>> Delete(const std::string& name);
  // Begins to empty a node of a space that this one coordinates, or ends that. Errors: kFailedPrecondition,
  // kInvalidArgument, or why the node is not up.
  absl::Status Drain(const v1::DrainSpaceRequest& request);
  // A node of the cluster takes part in a space that this one coordinates. Errors: kFailedPrecondition,
  // kInvalidArgument, why the node cannot, or kAborted: something else happened to the space, try again.
  absl::StatusOr<v1::Space> Join(const v1::JoinSpaceRequest& request);
  // `deadline`: the caller's; kSpaceIoLimit holds as well.
  absl::StatusOr<std::string> Read(const std::string& name, uint64_t address, uint32_t bytes, Monotonic deadline);
  absl::Status Write(const std::string& name, uint64_t address, const std::string& data, Monotonic deadline);
  absl::StatusOr<v1::SpaceMapResponse> Map(const std::string& name, uint64_t first_extent) const;
  absl::StatusOr<v1::SpaceTopResponse> Top(const std::string& name) const;

  // For a machine of this node whose memory the space is (SpacePart::Hold). Until that lets go nobody deletes the
  // space. Errors: kNotFound, kFailedPrecondition.
  absl::StatusOr<std::shared_ptr<GuestSpace>> Hold(const std::string& name,
                                                   std::function<void(const absl::Status&)> stopped);

  // The same of a space that `coordinator` coordinates. Errors: also kPermissionDenied, kAborted (it is being made).
  absl::StatusOr<std::shared_ptr<GuestSpace>> HoldOf(const std::string& coordinator, uint64_t id,
                                                     std::function<void(const absl::Status&)> stopped);

  // For the metrics: this node's parts, by name, but for those being made. Asks no peer.
  std::vector<SpaceSample> Samples() const;

  // For peers.
  absl::Status Attach(const v1::AttachSpaceRequest& request);
  absl::Status Detach(const v1::DetachSpaceRequest& request);
  absl::StatusOr<v1::SpaceStatusResponse> Status(const v1::SpaceStatusRequest& request) const;
  absl::StatusOr<std::vector<std::string>> Remove(const v1::RemoveSpaceRequest& request);
  absl::StatusOr<v1::ChangeSpaceEpochResponse> ChangeEpoch(const v1::ChangeSpaceEpochRequest& request);
  absl::Status NodeLost(const v1::SpaceNodeLostRequest& request);
  absl::StatusOr<v1::LeaveSpaceResponse> Leave(const v1::LeaveSpaceRequest& request);

  // For hellos. Spaces attached here that `coordinator` coordinates.
  std::vector<uint64_t> IdsOf(const std::string& coordinator) const;
  // Those of a peer's spaces that this node coordinates no more, or that the peer has left.
  std::vector<uint64_t> UnknownOf(const std::string& peer, const std::vector<uint64_t>& ids) const;
  // `coordinator` does not know these: they are dropped, by the manager's thread.
  void Drop(const std::string& coordinator, const std::vector<uint64_t>& ids);

  // Stops all spaces, so that nothing waits in them, and makes no more. Asks no peer after it.
  void StopAll();

 private:
  enum class Phase { kCreating, kAttached, kDeleting };
  struct Entry {
    SpaceIdentity identity;
    Phase phase = Phase::kCreating;
    bool cancelled = false;           // detached while it was being made
    WallTime since;                   // of the phase
    std::shared_ptr<SpacePart> part;  // null while it is being made
  };
  // A copy of an entry, for use without the lock.
  struct View {
    SpaceIdentity identity;
    Phase phase;
    WallTime since;
    std::shared_ptr<SpacePart> part;
  };
  struct Dropped {
    std::string coordinator;
    uint64_t id;
  };

  absl::StatusOr<SpaceIdentity> Identify(const v1::CreateSpaceRequest& request) const;
  // Makes an entry that is being made. Errors: kAlreadyExists, kResourceExhausted, kCancelled.
  absl::Status Begin(const SpaceIdentity& identity);
  // Attaches this node's part of it; on an error the entry is gone.
  absl::Status AttachHere(const SpaceIdentity& identity);
  // Attaches the others, one after another; detaches those again if one fails.
  absl::Status AttachOthers(const SpaceIdentity& identity);
  // Takes an attached entry for deletion. Errors: kNotFound, kFailedPrecondition.
  absl::StatusOr<View> BeginDelete(uint64_t id);
  // Ends this node's part and the entry. Errors: kAborted; then the entry can be deleted again.
  absl::Status EndHere(const View& space, const absl::Status& why);
  static absl::Status CheckNotHeld(const View& space);
  // Deletes the space here and at all other members but `skip`.
  absl::StatusOr<std::vector<std::string>> DeleteAt(const View& space, const std::string& skip);
  std::optional<SpaceRecovery::Space> FindForRecovery(uint64_t id) const;
  // What a node is told when it attaches.
  v1::AttachSpaceRequest AttachRequestOf(const SpaceIdentity& identity) const;
  // Those that take part or did, as an epoch says.
  void SetMembers(uint64_t id, std::vector<SpaceMemberId> members);
  // REQUIRES: the node is in joining_.
  absl::Status JoinWith(uint64_t id, const SpaceMemberId& node);
  // Members as a peer names them. Errors: a node that this one does not know, or by another number.
  absl::StatusOr<std::vector<SpaceMemberId>> MembersOf(
      const google::protobuf::RepeatedPtrField<v1::SpaceMember>& members) const;
  // For a peer that says it coordinates the space. Errors: kNotFound, kPermissionDenied, kAborted (it is being made).
  absl::StatusOr<SpaceRecovery::Space> FindOf(const std::string& coordinator, uint64_t id) const;
  absl::StatusOr<View> FindName(const std::string& name) const;
  absl::StatusOr<View> FindId(uint64_t id) const;
  // FindName, if it runs. Errors: kFailedPrecondition too.
  absl::StatusOr<View> FindRunning(const std::string& name) const;
  v1::Space SpaceOf(const View& view) const;
  v1::SpacePart PartOf(const View& view) const;
  v1::SpaceStatusResponse StatusOf(const View& view, const v1::SpaceStatusRequest& request) const;
  // Every member's answer, this one's too, by name; `part` without a state has the reason of one that did not answer.
  std::vector<v1::SpaceStatusResponse> AskAll(const View& view, uint64_t first_extent, uint32_t most,
                                              uint32_t most_hot_pages) const;
  void Run();

  const std::string self_;
  const SpaceFactory factory_;
  SpacePeers* const peers_;
  const Clock& clock_;
  SpaceRecords* const records_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);       // by name
  std::deque<Dropped> dropped_ ABSL_GUARDED_BY(mutex_);                // at most kMaxSpaces
  std::map<uint64_t, SpaceMemberId> joining_ ABSL_GUARDED_BY(mutex_);  // by space id: not to be dropped
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  SpaceRecovery recovery_;  // before the thread; parts tell it of losses until they are gone
  SpaceDrains drains_;
  std::thread thread_;
};

}  // namespace hk
