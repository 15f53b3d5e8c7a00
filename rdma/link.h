// The seam between the engine, which is all of a transport that verbs and TCP share (engine.h), and a back end's own
// part: connections (Link), and what makes them and gives the engine its threads (Wire).
//
// Threads of a back end: one per class (it receives, and calls Engine::Deliver, OnSendable, RunClass), and the control
// thread (handshakes, RunControl, all handler calls about peers). Send, Close and OnSetup of a Link are called by any
// thread under the lock of the link's lane: they must not call back into the engine, and must not block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "rdma/slot_memory.h"
#include "rdma/transport.h"
#include "rdma/wire.h"

namespace hk {

class Engine;

// Names one connection of one class of one peer; never repeats. What is said with the ticket of a connection that was
// replaced or closed has no effect, so a back end need not know what became of it. Plain value.
struct LinkTicket {
  NodeId peer;
  MessageClass message_class = MessageClass::kFault;
  uint64_t number = 0;
};

// One connection of one class. The engine sends on it and closes it; the back end reads from it.
class Link {
 public:
  virtual ~Link() = default;

  // kTaken: on its way, or kept by the link, which ends it by itself. kFull: nothing was taken; Engine::OnSendable
  // follows; never for a link's first message, its Setup. kBroken: nothing more can be sent.
  enum class Sent : uint8_t { kTaken, kFull, kBroken };
  // Puts one message on the wire. `header` is complete but for the CRC of body and payload. `payload` is a send slot's
  // memory and stays as it is until the message is acknowledged, or Close was called and ReadsPayloads says no, or the
  // link is destroyed; header and body do not. `more`: another Send follows at once, so this one may wait for it.
  virtual Sent Send(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload,
                    bool more) = 0;
  // The number of the first message that Send took and the wire has not, as a whole, or not yet: nobody can have
  // received it. All bits set: there is none, or the back end cannot know. Under the lane's lock.
  virtual uint64_t FirstUnsent() const { return UINT64_MAX; }
  // Called before anything else by Engine::OnSendable: goes on with what Send kept.
  virtual Sent Continue() { return Sent::kTaken; }
  // Ends the connection. After it returned nothing of it lands in a slot. `abort`: what is under way may be lost (the
  // peer is fenced); else the peer still gets what was sent before. Called once; the engine then forgets the link.
  virtual void Close(bool abort) = 0;
  // After Close: payloads of messages that were sent may still be read. Under the lane's lock.
  virtual bool ReadsPayloads() const { return false; }
  // Deliver said kHold before: offer the message again, on the class's thread.
  virtual void Resume() = 0;
  // A request was sent on this link just now, and nobody but this peer may answer it: until this link has delivered an
  // answer into `slot`, or a Barrier, or is closed, the slot is nobody else's. Under the lane's lock.
  virtual void Expect(SlotId slot) { static_cast<void>(slot); }
  // Verbs: where receive slots are, as told to the peer; and what the peer told.
  virtual void FillSetup(SetupBody* setup) const { static_cast<void>(setup); }
  virtual void OnSetup(const SetupBody& setup) { static_cast<void>(setup); }
};

// What makes links. Methods are thread-safe.
class Wire {
 public:
  virtual ~Wire() = default;

  // Listens and starts the threads. The engine outlives them.
  virtual absl::Status Start(Engine* engine) = 0;
  // Ends the threads and closes what is left; no call of the engine after it returned. Called once, also without Start.
  virtual void Stop() = 0;

  // Begins a connection and says `hello` on it. Ends in one call of Engine::OnReply or OnDialFailed with `attempt`, on
  // the control thread, handshake_ms after the host's address is known at the latest. Called on the control thread,
  // with no lock held.
  virtual void Dial(NodeId peer, const std::string& address, const Hello& hello, uint64_t attempt) = 0;
  // OK if Dial will understand the address; kInvalidArgument.
  virtual absl::Status CheckAddress(const std::string& address) const = 0;

  // Engine::RunClass, or RunControl, is to be called soon on its thread. Called with locks held.
  virtual void WakeClass(MessageClass message_class) = 0;
  virtual void WakeControl() = 0;
  // A number that nobody can guess, not 0: names a session.
  virtual uint64_t Random() = 0;
};

}  // namespace hk
