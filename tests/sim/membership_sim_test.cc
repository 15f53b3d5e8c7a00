// A cluster of membership tables on a virtual clock: nodes crash and restart, links are cut and healed, hellos are lost
// and delayed, by seed. The oracle knows what really happened.
//
// HK_SEED=N runs one seed. HK_SOAK=1 runs many.

#include <cstdlib>
#include <map>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/node/membership.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

constexpr int kNodes = 5;
constexpr milliseconds kInterval(500), kAfter(3000), kMaxDelay(400);
constexpr milliseconds kStormEnd(60000), kEnd(70000);

std::string NameOf(int node) {
  return std::string(1, static_cast<char>('a' + node));
}

class Simulation {
 public:
  explicit Simulation(uint64_t seed) : random_(seed) {
    for (int i = 0; i < kNodes; i++) {
      up_.push_back(true);
      MakeTable(i);
      At(Pick(kInterval), [this, i] { Tick(i); });
    }
    for (int i = 0; i < 60; i++) At(Pick(kStormEnd), [this] { Disturb(); });
    At(kStormEnd, [this] { Heal(); });
    for (milliseconds t(0); t < kEnd; t += milliseconds(97)) At(t, [this] { CheckSafety(); });
  }

  void Run() {
    while (!events_.empty() && events_.top().at <= kEnd && !testing::Test::HasFailure()) {
      Event event = events_.top();
      events_.pop();
      now_ = event.at;
      event.run();
    }
    for (int i = 0; i < kNodes; i++) {
      for (const v1::Member& member : tables_[i]->Snapshot(Now())) {
        EXPECT_EQ(member.state(), v1::MEMBER_STATE_UP)
            << NameOf(i) << " sees " << member.name() << " after all is healed";
      }
    }
  }

 private:
  struct Event {
    milliseconds at;
    uint64_t order;
    std::function<void()> run;
    bool operator<(const Event& other) const { return std::tie(other.at, other.order) < std::tie(at, order); }
  };

  Monotonic Now() const { return Monotonic(std::chrono::hours(1)) + now_; }
  WallTime Wall() const { return WallTime(std::chrono::hours(1)) + now_; }
  void At(milliseconds when, std::function<void()> run) { events_.push({when, next_order_++, std::move(run)}); }
  milliseconds Pick(milliseconds limit) {
    return milliseconds(std::uniform_int_distribution<int64_t>(0, limit.count() - 1)(random_));
  }
  int PickNode() { return std::uniform_int_distribution<int>(0, kNodes - 1)(random_); }
  bool Linked(int a, int b) const { return up_[a] && up_[b] && !cut_.count({std::min(a, b), std::max(a, b)}); }

  void MakeTable(int node) {
    std::vector<MembershipTable::Peer> peers;
    for (int i = 0; i < kNodes; i++) {
      if (i != node) peers.push_back({NameOf(i), "sim:" + NameOf(i), NodeId(static_cast<uint16_t>(i))});
    }
    if (tables_.size() <= static_cast<size_t>(node)) tables_.resize(node + 1);
    tables_[node] =
        std::make_unique<MembershipTable>(peers, "sim", NodeId(static_cast<uint16_t>(node)), kAfter, Now(), Wall());
    lives_[node]++;
    for (int i = 0; i < kNodes; i++) answered_.erase({node, i});
  }

  // Node says hello to all others.
  void Tick(int node) {
    At(now_ + kInterval, [this, node] { Tick(node); });
    if (!up_[node]) return;
    for (int peer = 0; peer < kNodes; peer++) {
      if (peer == node) continue;
      const int life = lives_[node];
      At(now_ + Pick(kMaxDelay), [this, node, peer, life] { Answer(node, peer, life); });
    }
  }

  void Answer(int node, int peer, int life) {
    if (lives_[node] != life || !up_[node]) return;  // asked in an earlier life
    if (!Linked(node, peer)) {
      tables_[node]->OnFailure(NameOf(peer), "no answer");
      return;
    }
    v1::NodeInfo info;
    info.set_name(NameOf(peer));
    info.set_cluster("sim");
    info.set_number(static_cast<uint32_t>(peer));
    tables_[node]->OnAnswer(NameOf(peer), {kPeerProtocolVersion, static_cast<uint32_t>(node), info}, milliseconds(1),
                            Now(), Wall());
    answered_[{node, peer}] = now_;
  }

  void Disturb() {
    const int a = PickNode(), b = PickNode();
    switch (std::uniform_int_distribution<int>(0, 3)(random_)) {
      case 0:
        up_[a] = false;
        break;
      case 1:
        if (!up_[a]) {
          up_[a] = true;
          MakeTable(a);
        }
        break;
      case 2:
        if (a != b) cut_[{std::min(a, b), std::max(a, b)}] = true;
        break;
      default:
        cut_.erase({std::min(a, b), std::max(a, b)});
    }
  }

  void Heal() {
    cut_.clear();
    for (int i = 0; i < kNodes; i++) {
      if (up_[i]) continue;
      up_[i] = true;
      MakeTable(i);
    }
  }

  // UP exactly if the last answer is not older than the deadline.
  void CheckSafety() {
    for (int i = 0; i < kNodes; i++) {
      if (!up_[i]) continue;
      for (const v1::Member& member : tables_[i]->Snapshot(Now())) {
        const int peer = member.name()[0] - 'a';
        const auto last = answered_.find({i, peer});
        const bool fresh = last != answered_.end() && now_ - last->second <= kAfter;
        ASSERT_EQ(member.state() == v1::MEMBER_STATE_UP, fresh)
            << NameOf(i) << " sees " << member.name() << " at " << now_.count() << " ms";
      }
    }
  }

  std::mt19937_64 random_;
  milliseconds now_{0};
  uint64_t next_order_ = 0;
  std::priority_queue<Event> events_;
  std::vector<bool> up_;
  std::map<std::pair<int, int>, bool> cut_;
  std::map<int, int> lives_;
  std::map<std::pair<int, int>, milliseconds> answered_;
  std::vector<std::unique_ptr<MembershipTable>> tables_;
};

TEST(MembershipSim, StatesFollowWhatHappenedAndHeal) {
  const char* one = std::getenv("HK_SEED");
  const uint64_t first = one == nullptr ? 1 : std::strtoull(one, nullptr, 10);
  const uint64_t count = one != nullptr ? 1 : std::getenv("HK_SOAK") != nullptr ? 100000 : 2000;
  for (uint64_t seed = first; seed < first + count; seed++) {
    SCOPED_TRACE("HK_SEED=" + std::to_string(seed));
    Simulation(seed).Run();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace hk
