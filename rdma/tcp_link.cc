#include "rdma/tcp_link.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "rdma/tcp_loop.h"

namespace hk {

namespace {

// Messages of one link that are handled before other links get their turn.
constexpr int kTurn = 32;

iovec PartOf(std::span<const std::byte> bytes) {
  return {.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
}

// Takes `bytes` off the front of `parts`.
void Advance(std::vector<iovec>* parts, size_t bytes) {
  size_t done = 0;
  while (done < parts->size() && bytes >= (*parts)[done].iov_len) bytes -= (*parts)[done++].iov_len;
  parts->erase(parts->begin(), parts->begin() + static_cast<ptrdiff_t>(done));
  if (bytes == 0) return;
  iovec& front = parts->front();
  front.iov_base = static_cast<std::byte*>(front.iov_base) + bytes;
  front.iov_len -= bytes;
}

}  // namespace

TcpLink::TcpLink(const LinkTicket& ticket, std::unique_ptr<ByteStream> stream, Engine* engine, TcpLoop* loop)
    : ticket_(ticket), stream_(std::move(stream)), engine_(engine), loop_(loop) {
  out_.reserve(kBatch * 2);
}

TcpLink::~TcpLink() = default;

// --- Writing ---

Link::Sent TcpLink::Send(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload,
                         bool more) {
  if (blocked_.load(std::memory_order_relaxed)) return Sent::kFull;
  Header complete = header;
  SetPayloadCrc(body, payload, &complete);
  const std::array<std::byte, kHeaderBytes> encoded = EncodeHeader(complete);
  std::span<std::byte> control = out_control_[out_messages_++];
  std::memcpy(control.data(), encoded.data(), encoded.size());
  if (!body.empty()) std::memcpy(control.data() + kHeaderBytes, body.data(), body.size());
  out_.push_back(PartOf(control.first(kHeaderBytes + body.size())));
  if (!payload.empty()) out_.push_back(PartOf(payload));
  if (more && out_messages_ < kBatch) return Sent::kTaken;
  return Flush() == Sent::kBroken ? Sent::kBroken : Sent::kTaken;
}

Link::Sent TcpLink::Flush() {
  while (!out_.empty()) {
    const ssize_t written = stream_->Write(out_);
    if (written == -EAGAIN) {
      if (!blocked_.exchange(true)) loop_->WantWrite(this);
      return Sent::kFull;
    }
    if (written < 0) return Sent::kBroken;
    Advance(&out_, static_cast<size_t>(written));
  }
  out_messages_ = 0;
  blocked_.store(false, std::memory_order_release);
  return Sent::kTaken;
}

Link::Sent TcpLink::Continue() {
  return Flush();
}

void TcpLink::Close(bool abort) {
  closed_.store(true, std::memory_order_release);
  stream_->Shutdown(abort);
  {
    // A read that is under way ends before this; none begins after.
    MutexLock lock(&reading_);
  }
  loop_->Closed();
}

void TcpLink::Resume() {
  loop_->Resume(shared_from_this());
}

// --- Reading ---

ssize_t TcpLink::Fill(bool* drained) {
  std::array<iovec, 2> parts;
  size_t count = 0;
  if (in_payload_) {
    in_begin_ = in_end_ = 0;
    parts[count++] = PartOf(payload_.subspan(payload_filled_));
    // The next header, if it is there, costs no system call of its own.
    parts[count++] = PartOf(std::span(in_).first(kHeaderBytes));
  } else {
    if (in_begin_ != 0) {
      std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
      in_end_ -= std::exchange(in_begin_, 0);
    }
    const size_t needed = kHeaderBytes + (have_header_ ? header_.body_bytes : 0);
    parts[count++] = PartOf(std::span(in_).subspan(in_end_, std::max(needed, read_ahead_) - in_end_));
  }
  MutexLock lock(&reading_);
  if (closed()) return 0;
  const ssize_t read = stream_->Read(std::span(parts).first(count));
  if (read <= 0) return read;
  // Fewer bytes than there is room for: what comes next, polling tells.
  size_t room = 0;
  for (size_t i = 0; i < count; ++i) room += parts[i].iov_len;
  *drained = static_cast<size_t>(read) < room && !stream_->HasBuffered();
  auto bytes = static_cast<size_t>(read);
  if (in_payload_) {
    const size_t taken = std::min(bytes, payload_.size() - payload_filled_);
    payload_filled_ += taken;
    bytes -= taken;
  }
  in_end_ += bytes;
  return read;
}

// Handles the messages that are there as a whole.
TcpLink::Step TcpLink::Parse(int* messages) {
  for (;;) {
    Step step = Step::kGoOn;
    if (!in_payload_) {
      step = ParseHeader();
    } else if (payload_filled_ == payload_.size()) {
      step = FinishPayload();
    } else {
      step = FillFromBuffer();
    }
    if (step != Step::kGoOn) return step;
    if (!have_header_) ++*messages;
  }
}

TcpLink::ReadResult TcpLink::Read(bool* progress) {
  int messages = 0;
  for (bool drained = false;;) {
    const int before = messages;
    const Step step = Parse(&messages);
    if (messages != before) *progress = true;
    if (step == Step::kPaused) return ReadResult::kPaused;
    if (step == Step::kClosed || closed()) return ReadResult::kClosed;
    if (drained) return ReadResult::kIdle;
    if (messages >= kTurn) return ReadResult::kMore;
    const ssize_t read = Fill(&drained);
    if (read > 0) continue;
    if (read == -EAGAIN) return ReadResult::kIdle;
    if (!closed()) {
      engine_->OnBroken(ticket_, read == 0 ? "closed by the peer" : std::strerror(static_cast<int>(-read)));
    }
    return ReadResult::kClosed;
  }
}

TcpLink::Step TcpLink::StepOf(Engine::Fate fate) const {
  switch (fate) {
    case Engine::Fate::kTaken:
      return Step::kGoOn;
    case Engine::Fate::kHold:
      return Step::kPaused;
    case Engine::Fate::kClosed:
      return Step::kClosed;
  }
  return Step::kClosed;
}

TcpLink::Step TcpLink::Malformed(const std::string& detail) {
  engine_->OnMalformed(ticket_, detail);
  return Step::kClosed;
}

TcpLink::Step TcpLink::ParseHeader() {
  const std::span<const std::byte> there = std::span<const std::byte>(in_).subspan(in_begin_, in_end_ - in_begin_);
  if (there.size() < kHeaderBytes) return Step::kNeedBytes;
  if (!have_header_) {
    const WireError error = DecodeHeader(there, ticket_.message_class, &header_);
    if (error != WireError::kNone) return Malformed(fmt::format("header: {}", WireErrorName(error)));
    have_header_ = true;
  }
  if (there.size() < kHeaderBytes + header_.body_bytes) return Step::kNeedBytes;
  const std::span<const std::byte> body = there.subspan(kHeaderBytes, header_.body_bytes);
  if (header_.payload_bytes != 0) {
    std::span<std::byte> destination;
    const Step step = StepOf(engine_->Destination(ticket_, header_, &destination));
    if (step != Step::kGoOn) return step;
    std::copy(body.begin(), body.end(), body_.begin());
    discard_ = destination.empty();
    if (discard_) {
      scratch_.resize(header_.payload_bytes);
      destination = scratch_;
    }
    payload_ = destination;
    payload_filled_ = 0;
    in_payload_ = true;
    in_begin_ += kHeaderBytes + header_.body_bytes;
    read_ahead_ = kHeaderBytes;  // pages come: what is read ahead has to be copied
    return Step::kGoOn;
  }
  if (CheckPayload(header_, body, {}) != WireError::kNone) return Malformed("body: payload-crc");
  const Step step = StepOf(engine_->Deliver(ticket_, header_, body, {}));
  if (step == Step::kPaused) return step;
  have_header_ = false;
  in_begin_ += kHeaderBytes + header_.body_bytes;
  read_ahead_ = std::min(read_ahead_ * 2, kInBytes);
  return step;
}

TcpLink::Step TcpLink::FillFromBuffer() {
  if (in_begin_ == in_end_) return Step::kNeedBytes;
  const size_t size = std::min(payload_.size() - payload_filled_, in_end_ - in_begin_);
  MutexLock lock(&reading_);
  if (closed()) return Step::kClosed;
  std::memcpy(payload_.data() + payload_filled_, in_.data() + in_begin_, size);
  payload_filled_ += size;
  in_begin_ += size;
  return Step::kGoOn;
}

TcpLink::Step TcpLink::FinishPayload() {
  const std::span<const std::byte> body = std::span<const std::byte>(body_).first(header_.body_bytes);
  bool right = false;
  {
    // After Close the slot may be somebody else's.
    MutexLock lock(&reading_);
    if (closed()) return Step::kClosed;
    right = CheckPayload(header_, body, payload_) == WireError::kNone;
  }
  if (!right) return Malformed("payload: payload-crc");
  const Step step = StepOf(engine_->Deliver(ticket_, header_, body, discard_ ? std::span<std::byte>() : payload_));
  if (step == Step::kPaused) return step;
  in_payload_ = have_header_ = false;
  if (discard_) scratch_ = {};
  payload_ = {};
  return step;
}

}  // namespace hk
