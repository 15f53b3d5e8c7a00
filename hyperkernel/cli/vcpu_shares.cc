#include "hyperkernel/cli/vcpu_shares.h"

#include <fmt/format.h>

#include <algorithm>

#include "hyperkernel/cli/output.h"

namespace hk::cli {
namespace {

// With this and shares of 100% a row has 80 columns.
constexpr size_t kMostOfName = 12;

template <typename Vcpus, typename Vcpu>
auto Find(const Vcpus& vcpus, const Vcpu& like) {
  return std::find_if(vcpus.begin(), vcpus.end(),
                      [&like](const auto& each) { return each.vcpu() == like.vcpu() && each.node() == like.node(); });
}

// What happened in `lived_ns`, as shares of it. A wait counts when it ends, so that those that began earlier may make
// it more than there was.
v1::VcpuShares SharesOf(const v1::VcpuTimes& before, const v1::VcpuTimes& after) {
  const auto lived = static_cast<double>(after.lived_ns() - before.lived_ns());
  const auto since = [lived](uint64_t from, uint64_t to) {
    return static_cast<double>(to - std::min(from, to)) / lived;
  };
  v1::VcpuShares shares;
  shares.set_vcpu(after.vcpu());
  shares.set_node(after.node());
  shares.set_interval_seconds(lived / 1e9);
  shares.set_halted(since(before.halted_ns(), after.halted_ns()));
  shares.set_fetch(since(before.reads().ns(), after.reads().ns()) + since(before.writes().ns(), after.writes().ns()));
  shares.set_upgrade(since(before.upgrades().ns(), after.upgrades().ns()));
  shares.set_forwarded(since(before.forwarded_ns(), after.forwarded_ns()));
  shares.set_exits(since(before.exits_ns() - before.forwarded_ns(), after.exits_ns() - after.forwarded_ns()));
  shares.set_interrupt(since(before.settling_ns(), after.settling_ns()));
  const double told =
      shares.halted() + shares.fetch() + shares.upgrade() + shares.forwarded() + shares.exits() + shares.interrupt();
  if (told > 1) {
    for (const char* field : {"halted", "fetch", "upgrade", "forwarded", "exits", "interrupt"}) {
      const auto* const descriptor = v1::VcpuShares::descriptor()->FindFieldByName(field);
      const auto* const reflection = v1::VcpuShares::GetReflection();
      reflection->SetDouble(&shares, descriptor, reflection->GetDouble(shares, descriptor) / told);
    }
  }
  const double rest = std::max(0.0, 1 - told);
  // Its thread's time on a processor is that of exits too: what it was ready to run tells the two apart, but not that
  // it was paused.
  const double ready = std::min(rest, since(before.ready_ns(), after.ready_ns()));
  shares.set_guest(std::min(rest - ready, since(before.running_ns(), after.running_ns())));
  shares.set_other(rest - shares.guest());
  shares.set_faults((since(before.reads().count(), after.reads().count()) +
                     since(before.writes().count(), after.writes().count()) +
                     since(before.upgrades().count(), after.upgrades().count())) *
                    1e9);
  return shares;
}

std::string Percent(double share) {
  return share > 0 && share < 0.005 ? "<1%" : fmt::format("{:.0f}%", 100 * share);
}

}  // namespace

void AddVcpuShares(const v1::SpaceTopResponse& before, v1::SpaceTopResponse* after) {
  for (const v1::VcpuTimes& times : after->vcpus()) {
    const auto earlier = Find(before.vcpus(), times);
    if (earlier == before.vcpus().end() || times.lived_ns() < earlier->lived_ns()) continue;
    if (times.lived_ns() > earlier->lived_ns()) {
      *after->add_vcpu_shares() = SharesOf(*earlier, times);
    } else if (const auto shares = Find(before.vcpu_shares(), times); shares != before.vcpu_shares().end()) {
      *after->add_vcpu_shares() = *shares;
    }
  }
  std::stable_sort(after->mutable_vcpu_shares()->begin(), after->mutable_vcpu_shares()->end(),
                   [](const auto& left, const auto& right) { return left.vcpu() < right.vcpu(); });
}

std::string VcpuSharesText(const v1::SpaceTopResponse& top) {
  if (top.vcpu_shares().empty()) return "";
  Table table({"VCPU", "NODE", "GUEST", "HALTED", "FETCH", "UPGRADE", "FORWARDED", "EXITS", "IRQ", "OTHER"});
  for (const v1::VcpuShares& vcpu : top.vcpu_shares()) {
    table.AddRow({fmt::to_string(vcpu.vcpu()), Printable(vcpu.node()).substr(0, kMostOfName), Percent(vcpu.guest()),
                  Percent(vcpu.halted()), Percent(vcpu.fetch()), Percent(vcpu.upgrade()), Percent(vcpu.forwarded()),
                  Percent(vcpu.exits()), Percent(vcpu.interrupt()), Percent(vcpu.other())});
  }
  return table.ToString();
}

}  // namespace hk::cli
