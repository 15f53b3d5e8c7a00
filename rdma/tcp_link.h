// One connection of one class over TCP: messages from and to bytes. A message goes out as one gathered write of header,
// body and payload, in the sender's thread if the socket takes it; what it does not take follows when it can. What
// comes in is cut into messages; payloads are read into their slots.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hyperkernel/base/mutex.h"
#include "rdma/byte_stream.h"
#include "rdma/engine.h"
#include "rdma/expected_slots.h"
#include "rdma/link.h"

namespace hk {

class TcpLoop;

// Room before each slot: for a header, read together with its page.
inline constexpr size_t kTcpSlotRoom = 128;
static_assert(kTcpSlotRoom >= kHeaderBytes);

// One connection. Thread safety: see Link; Read is the class's thread's.
class TcpLink final : public Link, public std::enable_shared_from_this<TcpLink> {
 public:
  // All outlive the link.
  TcpLink(const LinkTicket& ticket, std::unique_ptr<ByteStream> stream, Engine* engine, TcpLoop* loop);
  ~TcpLink() override;

  // Link.
  Sent Send(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload,
            bool more) override;
  Sent Continue() override;
  uint64_t FirstUnsent() const override;
  void Close(bool abort) override;
  void Resume() override;
  void Expect(SlotId slot) override;

  // What became of reading.
  enum class ReadResult : uint8_t {
    kIdle,    // all that was there was read: poll
    kMore,    // there is more, others first
    kPaused,  // nothing may be read before Resume
    kClosed,  // forget the link
  };
  // Reads and delivers what is there, up to a bound. `progress`: set if messages came that somebody waits for.
  ReadResult Read(bool* progress);
  // The class's thread: the other end has closed its side, or all: reads until there is nothing left.
  void SetEnded() { ended_ = true; }

  const LinkTicket& ticket() const { return ticket_; }
  int fd() const { return stream_->fd(); }
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  // A write is to be continued when the socket is writable.
  bool blocked() const { return blocked_.load(std::memory_order_acquire); }

 private:
  // A page is read with up to so many bytes behind it, so that a whole one shows that nothing follows. They and the
  // header fit the room between two slots.
  static constexpr size_t kBehindPage = kTcpSlotRoom - kHeaderBytes;

  // How many short messages are held back while the class's thread has others of the peer at hand (DeliverHolding): a
  // quarter of what keeps a peer busy.
  static constexpr size_t kHeld = 4;
  // How many messages one write gathers: with their payloads as many parts as a page of the kernel's iovecs.
  static constexpr size_t kBatch = 16;
  // How many bytes of messages without payload are read at once at most.
  static constexpr size_t kReadAhead = 4096;
  // Room for them, and for a page that was read to where it does not belong.
  static constexpr size_t kInBytes = kHeaderBytes + kFaultSlotBytes + kTcpSlotRoom;
  static_assert(kInBytes >= kReadAhead && kReadAhead >= kMaxControlBytes);

  // Of parsing: whether to go on.
  enum class Step : uint8_t { kGoOn, kNeedBytes, kPaused, kClosed };
  Step Parse(int* messages);
  Step ParseHeader();
  Step FillFromBuffer();
  void CheckWhole();
  Step FinishPayload();
  Step StepOf(Engine::Fate fate) const;
  Step Malformed(const std::string& detail);
  ReadResult ReadAll(bool* progress);
  // Delivers the present message. If bytes of the next one are there (`behind`), the handler's short messages wait for
  // its own: one write, and one wake-up of the peer, for some of them. They never wait while the thread does.
  Engine::Fate DeliverHolding(bool behind, std::span<const std::byte> body, std::span<const std::byte> payload);
  void LetGo();
  // Bytes moved as ByteStream::Read; 0 also if the link was closed. `drained`: there is no more for now.
  ssize_t Fill(bool* drained);
  ssize_t FillHeader(size_t* room);
  ssize_t FillPayload(size_t* room);
  ssize_t FillExpected(SlotId slot, size_t* room);
  void TakeExpected(SlotId slot, std::span<std::byte> page, std::span<const std::byte> read);
  // Between them the slot of the payload is ours. False: the link was closed, and it is not.
  bool EnterSlot();
  void LeaveSlot() { in_slot_.store(false, std::memory_order_release); }
  // Never kBroken: what came before the connection broke is read and delivered first, a Goodbye most of all; its end is
  // then told by reading, and what is dropped until then is sent again or was for nobody.
  Sent Flush();
  void SayGoodbye(std::span<const std::byte> bytes);
  // What has to be written before the connection can end: the rest of a message that was begun, and our Goodbye.
  std::vector<std::byte> Rest() const;

  const LinkTicket ticket_;
  const std::shared_ptr<ByteStream> stream_;
  Engine* const engine_;
  TcpLoop* const loop_;
  std::atomic<bool> closed_{false};
  std::atomic<bool> blocked_{false};
  std::atomic<bool> holding_{false};  // written by the class's thread
  std::atomic<bool> held_{false};     // something waits in out_ for LetGo

  // Writing: under the lane's lock.
  std::array<std::array<std::byte, kMaxControlBytes>, kBatch> out_control_;
  std::vector<iovec> out_;  // not written yet
  size_t out_messages_ = 0;
  // Of each of them its number, and how many bytes there are up to its end, from the first one's beginning.
  std::array<std::pair<uint64_t, size_t>, kBatch> out_ends_;
  size_t out_written_ = 0;              // of these bytes
  uint64_t dropped_from_ = UINT64_MAX;  // first number that a failed write took away
  std::vector<std::byte> goodbye_;      // not written yet; goes last
  std::atomic<int> write_error_{0};     // errno of the write that failed; read by the class's thread too

  // Set by the class's thread while it puts bytes into a slot or looks at them there: Close waits for it.
  std::atomic<bool> in_slot_{false};

  ExpectedSlots expected_;  // pushed under the lane's lock

  // Reading: the class's thread's.
  std::array<std::byte, kInBytes> in_;
  size_t in_begin_ = 0, in_end_ = 0;  // read and not parsed
  size_t read_ahead_ = kHeaderBytes;  // how much to read beyond what is needed
  Header header_;                     // of the message that is being parsed, if have_header_
  bool have_header_ = false;
  bool in_payload_ = false;
  std::array<std::byte, kMaxBodyBytes> body_;  // while the payload comes
  std::span<std::byte> payload_;               // where it goes
  size_t payload_filled_ = 0;
  bool discard_ = false;
  bool payload_right_ = false;  // its CRC
  bool ended_ = false;
  std::vector<std::byte> scratch_;  // where a payload goes that nobody wants
};

}  // namespace hk
