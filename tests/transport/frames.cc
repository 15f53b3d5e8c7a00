#include "tests/transport/frames.h"

namespace hk {

std::vector<std::byte> Frame(Header header, std::span<const std::byte> body, std::span<const std::byte> payload) {
  header.body_bytes = static_cast<uint16_t>(body.size());
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  SetPayloadCrc(body, payload, &header);
  const auto encoded = EncodeHeader(header);
  std::vector<std::byte> bytes;
  bytes.reserve(kHeaderBytes + body.size() + payload.size());
  for (const std::span<const std::byte> part : {std::span<const std::byte>(encoded), body, payload}) {
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  return bytes;
}

Header Numbered(MessageClass message_class, uint64_t sequence) {
  Header header;
  header.message.message_class = message_class;
  header.message.type = kFirstUserType;
  header.sequence = sequence;
  return header;
}

Hello GoodHello(NodeId from, NodeId to, MessageClass message_class, uint64_t session, uint64_t peer_session) {
  Hello hello;
  hello.message_class = message_class;
  hello.cluster = ClusterHash("conformance");
  hello.from = from;
  hello.to = to;
  hello.node_epoch = Epoch(1);
  hello.session = session;
  hello.peer_session = peer_session;
  return hello;
}

void Reseal(std::vector<std::byte>* frame) {
  const uint32_t crc = Crc32c(std::span(*frame).first(kHeaderBytes - 4));
  for (size_t i = 0; i < 4; ++i) (*frame)[kHeaderBytes - 4 + i] = static_cast<std::byte>(crc >> (8 * i));
}

}  // namespace hk
