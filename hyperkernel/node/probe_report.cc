#include "hyperkernel/node/probe_report.h"

#include "hyperkernel/node/probe/host_probe.h"

namespace hk {

v1::ProbeReport ProbeThisHost(const std::string& node) {
  v1::ProbeReport report;
  report.set_node(node);
  for (const ProbeItem& item : ProbeHost()) {
    v1::ProbeItem* out = report.add_items();
    out->set_group(item.group);
    out->set_name(item.name);
    out->set_verdict(item.yes ? v1::PROBE_VERDICT_YES : v1::PROBE_VERDICT_NO);
    out->set_detail(item.detail);
    out->set_required(item.required);
    if (item.yes) continue;
    out->set_lost(item.lost);
    out->set_fix(item.fix);
  }
  return report;
}

}  // namespace hk
