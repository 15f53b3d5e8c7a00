// How a space goes on when some of its nodes are lost, or leave, or when one joins. Thread-safe.
//
// The coordinator raises the space's epoch and takes all that are left through its steps (memory/README.md,
// "Recovery"); a member tells the coordinator whom it lost, and does the steps.
//
// Invariants:
//  1. A step begins at no node before the one before it has ended at all survivors. If one fails, all begins anew with
//     a higher epoch; an epoch is used once, and is on disk before.
//  2. Who is given up has stopped before anybody goes on: it said so, or its lease has ended (kFenceLimit).
//  3. Nothing here waits for ever: a step has a deadline, changes that begin anew a limit (2 min), and the memory
//     itself stops when no epoch comes.
//  4. Before COMMIT nothing that a node which joins does, says or suffers costs anybody but it: an attempt with it
//  gives
//     nobody up and stops nobody. Whatever fails, the join is over, and the next epoch begins without it; who is lost
//     meanwhile is found lost by that one. After COMMIT it is a member like any other.
//  5. A join is over, or it holds: one of the two, once, under the lock (EndJoin, Hold).
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/node/space_part.h"
#include "hyperkernel/node/space_peers.h"
#include "hyperkernel/node/space_rules.h"
#include "proto/peer.pb.h"

namespace hk {

// All of one node.
class SpaceRecovery {
 public:
  // What is to be known of a space. Plain value.
  struct Space {
    SpaceIdentity identity;
    std::shared_ptr<SpacePart> part;  // null: it is being made
  };
  // The space, or nothing: it is deleted, or being deleted.
  using Find = std::function<std::optional<Space>(uint64_t id)>;
  // A node has joined a space: all that take part in it or did, before the node's join ends. Without a lock.
  using Joined = std::function<void(uint64_t id, const std::vector<SpaceMemberId>& members)>;

  // Keeps an epoch that is to be used on disk. Without a lock; empty: nothing is kept.
  using Keep = std::function<absl::Status(const SpaceIdentity& space, uint64_t epoch)>;

  // `peers` and `clock` outlive it.
  SpaceRecovery(std::string self, Find find, SpacePeers* peers, const Clock& clock, Joined joined = {}, Keep keep = {});
  // REQUIRES: Stop.
  ~SpaceRecovery();
  // Nothing is begun any more; waits for what is under way; joins end.
  void Stop();

  // This node lost a node of the space. Never blocks.
  void OnLost(uint64_t id, NodeId lost);
  // A member says so. One that is given up itself has no say.
  void OnTold(uint64_t id, NodeId member, NodeId lost);
  // A node that leaves says that it has nothing any more. REQUIRES: this node coordinates the space. It goes when
  // nobody else is to be given up, if it says so again then; else it stays, and is told of here again.
  void OnEmpty(uint64_t id, NodeId node);
  // What a node that joins is to know. Plain value.
  struct History {
    uint64_t epoch = 1;
    std::vector<NodeSet> committed;      // who took part, the last one last (AddSet)
    std::vector<SpaceMemberId> members;  // that take part or did
  };
  // Errors: kAborted, while anything of the space changes.
  absl::StatusOr<History> HistoryOf(const Space& space);
  // A node that has attached with this history takes part from the next epoch on. REQUIRES: this node coordinates the
  // space. `end` is called once: an error, if anything failed before that epoch held, or it is another one by now; then
  // the node has no part.
  void OnJoin(const Space& space, const SpaceMemberId& node, uint64_t epoch, std::function<void(absl::Status)> end);
  // Whoever joins does not, and its join ends with this error; nothing, if it has joined, or if that is over already.
  void EndJoin(uint64_t id, const absl::Status& why);
  // It is to stay after all, if it was not asked yet.
  void Withdraw(uint64_t id, NodeId node);
  // Somebody is to be given up, or is being given up.
  bool IsBusy(uint64_t id) const;
  // One step, at this node. Errors: why the space is stopped here.
  absl::StatusOr<v1::ChangeSpaceEpochResponse> DoStep(const Space& space, const v1::ChangeSpaceEpochRequest& request);

 private:
  // What the coordinator knows of a space that lost nodes.
  struct Record {
    uint64_t epoch = 1, committed = 1;
    NodeSet lost;                        // given up
    NodeSet pending;                     // to be, or the others have not gone on yet
    NodeSet leaving;                     // to be, of those that have nothing any more
    NodeSet left;                        // of the lost ones: had nothing any more
    std::vector<SpaceMemberId> members;  // with those that joined; empty: the identity's
    std::vector<NodeSet> committed_sets;
    std::optional<SpaceMemberId> joining;  // from OnJoin until its epoch holds, or it is over
    std::function<void(absl::Status)> join_end;
    absl::Status join_failure;  // it cannot join any more
    NodeSet begun;              // joined in epochs that began and did not hold: nothing is lost with them
    bool queued = false;
    bool unfinished = false;  // an epoch has begun, and does not run
  };
  using Answers = std::map<NodeId, absl::StatusOr<v1::ChangeSpaceEpochResponse>>;

  void AddLocked(uint64_t id, NodeId lost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void QueueLocked(uint64_t id, Record* record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Record& RecordOf(const Space& space) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // One step of an attempt with a node that joins has ended. False: the join is over.
  bool JoinGoesOn(const Space& space, const Answers& answers);
  // `space` is to go on with these from now on, if nothing has come between.
  bool Hold(const Space& space, const v1::ChangeSpaceEpochRequest& request, NodeSet survivors, NodeSet left,
            NodeSet joined);
  void Work();
  // Ends when all that is lost is dealt with.
  void Drive(uint64_t id);
  // One attempt. True: done, or there is nothing to be done any more.
  bool Try(const Space& known);
  void TellCoordinator(const Space& space, NodeSet lost);
  // Those of `leaving` have nothing any more and have stopped (`left`), or it is not known whether they have (`lost`);
  // the others stay.
  struct Parting {
    NodeSet left, lost;
  };
  Parting Part(const Space& space, NodeSet leaving, uint64_t epoch);
  // The lost node has stopped when it returns, or its lease has ended.
  void Fence(const Space& space, NodeSet lost, uint64_t epoch);
  Answers AskAll(const Space& space, const v1::ChangeSpaceEpochRequest& request);
  absl::StatusOr<v1::ChangeSpaceEpochResponse> Ask(const Space& space, NodeId node,
                                                   const v1::ChangeSpaceEpochRequest& request);
  // Before anything begins: this node is connected to all others of an epoch that somebody joins.
  absl::Status Prepare(const Space& space, const v1::ChangeSpaceEpochRequest& request);
  // Waits, but not when it ends.
  void Pause(std::chrono::milliseconds time);

  const std::string self_;
  const Find find_;
  SpacePeers* const peers_;
  const Clock& clock_;
  const Joined joined_;
  const Keep keep_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<uint64_t, Record> records_ ABSL_GUARDED_BY(mutex_);  // by space id; a few words each
  std::deque<uint64_t> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace hk
