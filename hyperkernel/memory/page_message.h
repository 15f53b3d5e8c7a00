// The messages of the page protocol, as values: what the page's node (page_protocol.h) and its home (page_directory.h)
// say to each other. Meaning, class and bytes: README.md, "Page protocol". No thread safety to speak of.
#pragma once

#include <cstdint>

#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"

namespace hk {

// What a node may do with its copy. Ordered: more is greater.
enum class PageRight : uint8_t { kNone, kShared, kOwner, kExclusive };

// What a node asks the home for. kOverwrite: exclusive, and the bytes do not matter. kAdopt: the owner's place, with
// whatever right it has, to relieve it of the frame.
enum class RequestKind : uint8_t { kRead, kWrite, kOverwrite, kAdopt };

// Where the bytes of a granted page come from. kNone: the requester has them, or does not want them.
// kPeeked: the requester has them from the owner, by its Peek.
enum class PageSource : uint8_t { kNone, kZero, kStored, kPayload, kPeeked };

// Why a request was not granted. Only kLost is final.
enum class NackReason : uint8_t { kBusy, kMoved, kNothing, kLost };

// Numbers are part of the wire format; append only. kFirstUserType (rdma/transport.h) is added on the wire.
enum class PageMessageType : uint8_t {
  kRequest = 0,        // node -> home, fault, names a receive slot
  kForward = 1,        // home -> owner, fault, hands on the request with its slot
  kAnswer = 2,         // home or owner -> requester, fault, answers the slot
  kNack = 3,           // home -> requester, fault, answers the slot
  kInvalidate = 4,     // home -> holder, invalidate
  kAck = 5,            // holder -> requester, invalidate
  kDone = 6,           // requester -> home, fault
  kRelease = 7,        // home -> the owner that was, fault
  kReleased = 8,       // the owner that was -> home, fault
  kEvict = 9,          // owner -> home, fault
  kEvictGranted = 10,  // home -> owner, fault
  kEvictDenied = 11,   // home -> owner, fault
  kOffer = 12,         // owner -> a node with frames to spare, bulk; a hint
  // 13: Stopped (page_wire.h)
  kPeek = 14,    // requester -> who it takes for the owner, fault, names a receive slot
  kPeeked = 15,  // the asked node -> requester, fault, answers the slot
};

// One message about one page. Plain value; fields that a type does not use are zero.
struct PageMessage {
  PageMessageType type = PageMessageType::kRequest;
  NodeId from;
  NodeId to;
  NodeId requester;
  uint64_t transaction = 0;  // the requester's number of its request; with `requester` it names the request
  // The home's number of the transaction; grows for each page, over re-homing too. Request with `peeks`: the highest
  // one that the requester has heard of, of the page's extent, before it asked.
  uint64_t serial = 0;
  RequestKind kind = RequestKind::kRead;
  bool has_copy = false;                  // Request: the requester holds a readable copy now
  PageRight right = PageRight::kNone;     // Answer
  PageSource source = PageSource::kNone;  // Answer; Evict: kZero or kStored, what the page's bytes equal; Peeked:
                                          // kPayload, or kNone: refused
  uint64_t storage = 0;                   // with kStored: the stable-storage address
  NodeSet acks;                           // Forward, Answer: the nodes whose Acks the requester awaits
  NackReason reason = NackReason::kBusy;  // Nack
  // Nack(kMoved): whom to ask instead. Nack(kLost): the lost node that had the only copy, or one that lives: not known.
  NodeId home;
  bool urgent = false;    // Offer: the sender has no other way to a frame
  bool peeks = false;     // Request: a Peek of the same transaction has gone to `asked`
  NodeId asked;           // with `peeks`
  uint64_t ticket = 0;    // Request, Forward, Invalidate: of the requester's thread (thread_gather.h); 0: none
  bool declined = false;  // Done: the Peek was refused, so what was granted with its bytes was not taken
  friend bool operator==(const PageMessage&, const PageMessage&) = default;
};

// What one survivor says about one page after an epoch change. Plain value.
struct PageReport {
  NodeId node{};
  PageRight right = PageRight::kNone;
  PageRight evicting = PageRight::kNone;  // bytes of an eviction whose end is unknown, and the right they had
  bool retained = false;
  uint64_t retained_serial = 0;
  NodeId retained_for{};
};

}  // namespace hk
