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
#include <vector>

#include "hyperkernel/base/mutex.h"
#include "rdma/byte_stream.h"
#include "rdma/engine.h"
#include "rdma/link.h"

namespace hk {

class TcpLoop;

// Thread safety: see Link; Read is the class's thread's.
class TcpLink final : public Link, public std::enable_shared_from_this<TcpLink> {
 public:
  // All outlive the link.
  TcpLink(const LinkTicket& ticket, std::unique_ptr<ByteStream> stream, Engine* engine, TcpLoop* loop);
  ~TcpLink() override;

  // Link.
  Sent Send(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload,
            bool more) override;
  Sent Continue() override;
  void Close(bool abort) override;
  void Resume() override;

  // What became of reading.
  enum class ReadResult : uint8_t {
    kIdle,    // all that was there was read: poll
    kMore,    // there is more, others first
    kPaused,  // nothing may be read before Resume
    kClosed,  // forget the link
  };
  // Reads and delivers what is there, up to a bound. `progress`: set if messages came that somebody waits for.
  ReadResult Read(bool* progress);

  const LinkTicket& ticket() const { return ticket_; }
  int fd() const { return stream_->fd(); }
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  // A write is to be continued when the socket is writable.
  bool blocked() const { return blocked_.load(std::memory_order_acquire); }

 private:
  // How many messages one write gathers: with their payloads as many parts as a page of the kernel's iovecs.
  static constexpr size_t kBatch = 16;
  // Room for headers of one read: beyond, a system call more costs little.
  static constexpr size_t kInBytes = 4096;
  static_assert(kInBytes >= kMaxControlBytes);

  // Of parsing: whether to go on.
  enum class Step : uint8_t { kGoOn, kNeedBytes, kPaused, kClosed };
  Step Parse(int* messages);
  Step ParseHeader();
  Step FillFromBuffer();
  Step FinishPayload();
  Step StepOf(Engine::Fate fate) const;
  Step Malformed(const std::string& detail);
  // Bytes moved as ByteStream::Read; 0 also if the link was closed. `drained`: there is no more for now.
  ssize_t Fill(bool* drained);
  Sent Flush();

  const LinkTicket ticket_;
  const std::unique_ptr<ByteStream> stream_;
  Engine* const engine_;
  TcpLoop* const loop_;
  std::atomic<bool> closed_{false};
  std::atomic<bool> blocked_{false};

  // Writing: under the lane's lock.
  std::array<std::array<std::byte, kMaxControlBytes>, kBatch> out_control_;
  std::vector<iovec> out_;  // not written yet
  size_t out_messages_ = 0;

  // Reading: the class's thread's. `reading_` is held while bytes go where Close must stop them from going.
  Mutex reading_;
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
  std::vector<std::byte> scratch_;  // where a payload goes that nobody wants
};

}  // namespace hk
