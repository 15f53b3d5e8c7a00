#include "rdma/tcp_link.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
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
  const bool goodbye = header.message.type == static_cast<uint16_t>(OwnType::kGoodbye);
  if (blocked_.load(std::memory_order_relaxed) && !goodbye) return Sent::kFull;
  if (write_error_.load(std::memory_order_relaxed) != 0) {
    if (header.sequence != 0) dropped_from_ = std::min(dropped_from_, header.sequence);
    return Sent::kTaken;
  }
  Header complete = header;
  SetPayloadCrc(body, payload, &complete);
  const std::array<std::byte, kHeaderBytes> encoded = EncodeHeader(complete);
  if (goodbye) {
    SayGoodbye(encoded);
    return Sent::kTaken;
  }
  out_ends_[out_messages_] = {header.sequence, kHeaderBytes + body.size() + payload.size()};
  if (out_messages_ > 0) out_ends_[out_messages_].second += out_ends_[out_messages_ - 1].second;
  std::span<std::byte> control = out_control_[out_messages_++];
  std::memcpy(control.data(), encoded.data(), encoded.size());
  if (!body.empty()) std::memcpy(control.data() + kHeaderBytes, body.data(), body.size());
  out_.push_back(PartOf(control.first(kHeaderBytes + body.size())));
  if (!payload.empty()) out_.push_back(PartOf(payload));
  if (more && out_messages_ < kBatch) return Sent::kTaken;
  // Pages of the bulk class too: nobody waits for one of them alone.
  const bool can_wait = payload.empty() || ticket_.message_class == MessageClass::kBulk;
  if (holding_.load(std::memory_order_relaxed) && can_wait && header.message.type >= kFirstUserType &&
      out_messages_ < kHeld) {
    held_.store(true);
    if (holding_.load()) return Sent::kTaken;  // LetGo sees held_
  }
  static_cast<void>(Flush());
  return Sent::kTaken;
}

Link::Sent TcpLink::Flush() {
  while (!out_.empty()) {
    const ssize_t written = stream_->Write(out_);
    if (written == -EAGAIN) {
      if (!blocked_.exchange(true)) loop_->WantWrite(this);
      return Sent::kFull;
    }
    if (written < 0) {
      write_error_.store(static_cast<int>(-written));
      dropped_from_ = FirstUnsent();
      out_.clear();
      stream_->EndReading();
      break;
    }
    out_written_ += static_cast<size_t>(written);
    Advance(&out_, static_cast<size_t>(written));
  }
  out_messages_ = 0;
  out_written_ = 0;
  held_.store(false, std::memory_order_relaxed);
  blocked_.store(false, std::memory_order_release);
  return Sent::kTaken;
}

Link::Sent TcpLink::Continue() {
  return Flush();
}

uint64_t TcpLink::FirstUnsent() const {
  if (out_.empty()) return dropped_from_;
  for (const auto& [sequence, end] : std::span(out_ends_).first(out_messages_)) {
    if (end > out_written_ && sequence != 0) return std::min(sequence, dropped_from_);
  }
  return dropped_from_;
}

// The last message: it need not wait for room in the socket, since what it waits for is bounded (TcpPartings).
void TcpLink::SayGoodbye(std::span<const std::byte> bytes) {
  static_cast<void>(Flush());
  if (write_error_.load(std::memory_order_relaxed) != 0) return;
  goodbye_.assign(bytes.begin(), bytes.end());
  if (!out_.empty()) return;
  const iovec part = PartOf(goodbye_);
  const ssize_t written = stream_->Write({&part, 1});
  if (written > 0) goodbye_.erase(goodbye_.begin(), goodbye_.begin() + written);
}

std::vector<std::byte> TcpLink::Rest() const {
  std::vector<std::byte> rest;
  if (write_error_.load(std::memory_order_relaxed) != 0) return rest;
  // Messages of which nothing was written are dropped with the session.
  size_t end = 0;
  for (size_t i = 0; i < out_messages_ && end < out_written_ + stream_->RetryBytes(); ++i) end = out_ends_[i].second;
  size_t left = out_.empty() ? 0 : end - std::min(end, out_written_);
  for (const iovec& part : out_) {
    const size_t bytes = std::min(left, part.iov_len);
    const auto* const begin = static_cast<const std::byte*>(part.iov_base);
    rest.insert(rest.end(), begin, begin + bytes);
    left -= bytes;
  }
  rest.insert(rest.end(), goodbye_.begin(), goodbye_.end());
  return rest;
}

void TcpLink::Close(bool abort) {
  closed_.store(true);
  if (abort) {
    stream_->Abort();
  } else {
    loop_->Part(stream_, Rest());
  }
  // What began before ends soon (it does not block); nothing begins after.
  while (in_slot_.load()) std::this_thread::yield();
  loop_->Closed();
}

void TcpLink::Expect(SlotId slot) {
  // Of a bulk answer a second system call is a small part, and what is read to a wrong place a large one.
  if (ticket_.message_class == MessageClass::kFault) expected_.Push(slot);
}

void TcpLink::Resume() {
  loop_->Resume(shared_from_this());
}

// --- Reading ---

bool TcpLink::EnterSlot() {
  in_slot_.store(true);
  if (!closed_.load()) return true;
  LeaveSlot();
  return false;
}

ssize_t TcpLink::Fill(bool* drained) {
  size_t room = 0;
  ssize_t read = 0;
  if (in_payload_) {
    read = FillPayload(&room);
  } else if (const SlotId slot = in_begin_ == in_end_ ? expected_.First() : SlotId(); slot != SlotId()) {
    read = FillExpected(slot, &room);
  } else {
    read = FillHeader(&room);
  }
  // Fewer bytes than there was room for: what comes next, polling tells (epoll(7)).
  *drained = read > 0 && static_cast<size_t>(read) < room && !ended_ && !stream_->HasBuffered();
  return read;
}

ssize_t TcpLink::FillHeader(size_t* room) {
  if (in_begin_ != 0) {
    std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
    in_end_ -= std::exchange(in_begin_, 0);
  }
  const size_t needed = kHeaderBytes + (have_header_ ? header_.body_bytes : 0);
  const iovec part = PartOf(std::span(in_).subspan(in_end_, std::max(needed, read_ahead_) - in_end_));
  *room = part.iov_len;
  const ssize_t read = stream_->Read({&part, 1});
  if (read > 0) in_end_ += static_cast<size_t>(read);
  return read;
}

ssize_t TcpLink::FillPayload(size_t* room) {
  const std::span<std::byte> rest = payload_.subspan(payload_filled_);
  // The next header, if it is there, costs no system call of its own.
  const std::array<iovec, 2> parts = {PartOf(rest), PartOf(std::span(in_).first(kHeaderBytes))};
  *room = rest.size() + kHeaderBytes;
  if (!EnterSlot()) return 0;
  const ssize_t read = stream_->Read(parts);
  const auto bytes = static_cast<size_t>(std::max<ssize_t>(read, 0));
  const size_t taken = std::min(bytes, rest.size());
  payload_filled_ += taken;
  CheckWhole();
  LeaveSlot();
  in_begin_ = 0;
  in_end_ = bytes - taken;
  return read;
}

// The next message is most likely the answer to the oldest request: its page is read to where it belongs, with its
// header before it, by one system call. If it is something else, what was read is parsed like everything else: the slot
// is still nobody's.
ssize_t TcpLink::FillExpected(SlotId slot, size_t* room) {
  const std::span<std::byte> page = engine_->memory().Bytes(slot);
  const std::span<std::byte> there(page.data() - kHeaderBytes, kHeaderBytes + page.size() + kBehindPage);
  const iovec part = PartOf(there);
  *room = there.size();
  if (!EnterSlot()) return 0;
  const ssize_t read = stream_->Read({&part, 1});
  if (read > 0) TakeExpected(slot, page, there.first(static_cast<size_t>(read)));
  LeaveSlot();
  return read;
}

// Within EnterSlot.
void TcpLink::TakeExpected(SlotId slot, std::span<std::byte> page, std::span<const std::byte> read) {
  std::span<const std::byte> rest = read;
  if (read.size() >= kHeaderBytes && DecodeHeader(read, ticket_.message_class, &header_) == WireError::kNone &&
      header_.message.answer && (header_.message.slot == slot || HK_MUTANT(tcp_page_in_any_slot)) &&
      header_.body_bytes == 0 && header_.payload_bytes == page.size()) {
    have_header_ = in_payload_ = true;
    discard_ = false;
    payload_ = page;
    payload_filled_ = std::min(read.size() - kHeaderBytes, page.size());
    rest = read.subspan(kHeaderBytes + payload_filled_);
    CheckWhole();
  }
  std::copy(rest.begin(), rest.end(), in_.begin());
  in_begin_ = 0;
  in_end_ = rest.size();
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

Engine::Fate TcpLink::DeliverHolding(bool behind, std::span<const std::byte> body, std::span<const std::byte> payload) {
  if (behind != holding_.load(std::memory_order_relaxed)) holding_.store(behind);
  return engine_->Deliver(ticket_, header_, body, payload);
}

void TcpLink::LetGo() {
  if (!holding_.load(std::memory_order_relaxed) && !held_.load()) return;
  holding_.store(false);
  if (held_.exchange(false)) engine_->OnSendable(ticket_);
}

TcpLink::ReadResult TcpLink::Read(bool* progress) {
  const ReadResult result = ReadAll(progress);
  LetGo();
  return result;
}

TcpLink::ReadResult TcpLink::ReadAll(bool* progress) {
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
      // Reading ends by itself after a failed write, whose reason is the one that matters.
      const int error = write_error_.load() != 0 ? write_error_.load() : static_cast<int>(-read);
      engine_->OnBroken(ticket_, error == 0 ? "closed by the peer" : std::strerror(error));
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
  const bool behind = there.size() > kHeaderBytes + header_.body_bytes;
  const Step step = StepOf(DeliverHolding(behind, body, {}));
  if (step == Step::kPaused) return step;
  // Not before: the answer may be here before Send has come to Expect; Deliver waits for the lock that it holds.
  if (header_.message.answer) expected_.Erase(header_.message.slot);
  // It may have freed slots.
  if (header_.message.type == static_cast<uint16_t>(OwnType::kBarrier)) expected_.Clear();
  have_header_ = false;
  in_begin_ += kHeaderBytes + header_.body_bytes;
  read_ahead_ = std::min(read_ahead_ * 2, kReadAhead);
  return step;
}

TcpLink::Step TcpLink::FillFromBuffer() {
  if (in_begin_ == in_end_) return Step::kNeedBytes;
  const size_t size = std::min(payload_.size() - payload_filled_, in_end_ - in_begin_);
  if (!EnterSlot()) return Step::kClosed;
  std::memcpy(payload_.data() + payload_filled_, in_.data() + in_begin_, size);
  payload_filled_ += size;
  in_begin_ += size;
  CheckWhole();
  LeaveSlot();
  return Step::kGoOn;
}

// Within EnterSlot.
void TcpLink::CheckWhole() {
  if (payload_filled_ < payload_.size()) return;
  const std::span<const std::byte> body = std::span<const std::byte>(body_).first(header_.body_bytes);
  payload_right_ = CheckPayload(header_, body, payload_) == WireError::kNone;
}

TcpLink::Step TcpLink::FinishPayload() {
  const std::span<const std::byte> body = std::span<const std::byte>(body_).first(header_.body_bytes);
  if (!payload_right_) return Malformed("payload: payload-crc");
  const Step step = StepOf(DeliverHolding(in_begin_ != in_end_, body, discard_ ? std::span<std::byte>() : payload_));
  if (step == Step::kPaused) return step;
  expected_.Erase(header_.message.slot);
  in_payload_ = have_header_ = false;
  if (discard_) scratch_ = {};
  payload_ = {};
  return step;
}

}  // namespace hk
