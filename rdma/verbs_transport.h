// The verbs back end of the transport: reliable connections through rdma_cm, pages by RDMA WRITE. See rdma/README.md,
// Verbs.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "rdma/transport.h"

namespace hk {

// A node's transport over the verbs device that has the address `listen` ("IP:PORT", not a wildcard). Peers' addresses
// are IP literals. The handler outlives it. Errors: kInvalidArgument, naming the setting. Without a device Start fails.
absl::StatusOr<std::unique_ptr<Transport>> MakeVerbsTransport(const TransportSettings& settings,
                                                              const std::string& listen, TransportHandler* handler);

}  // namespace hk
