#include "rdma/verbs_transport.h"

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/address.h"
#include "hyperkernel/base/status.h"
#include "rdma/engine.h"
#include "rdma/verbs_connections.h"
#include "rdma/wire.h"

namespace hk {

absl::StatusOr<std::unique_ptr<Transport>> MakeVerbsTransport(const TransportSettings& settings,
                                                              const std::string& listen, TransportHandler* handler) {
  HK_ASSIGN_OR_RETURN(const Address address, ParseAddress(listen, AddressForm::kListenTcp));
  if (address.IsWildcard()) {
    return absl::InvalidArgumentError(fmt::format("{}: verbs need the address of one network interface", listen));
  }
  return Engine::Create(settings, handler, std::make_unique<VerbsWire>(settings, address), kSlotRoomBytes);
}

}  // namespace hk
