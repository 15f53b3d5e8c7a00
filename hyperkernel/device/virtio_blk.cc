#include "hyperkernel/device/virtio_blk.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/virtio_blk.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr uint64_t kSectorBytes = 512;  // 5.2: the unit of the request header, whatever blk_size says
constexpr size_t kBounceBytes = 256 * 1024;
constexpr size_t kBounceAlign = 4096;
constexpr uint64_t kMinBurst = 1 << 20;
constexpr unsigned kRetryUs = 1000;
constexpr std::chrono::milliseconds kDrainLook(10);

constexpr uint64_t Bit(int feature) {
  return uint64_t{1} << feature;
}

// Above what any driver asks for in one segment; the field has 32 bits.
constexpr uint64_t kMostSegmentPages = (uint64_t{1} << 30) / kPageSize;

}  // namespace

VirtioBlk::VirtioBlk(DiskImage image, Options options)
    : image_(std::move(image)),
      options_(std::move(options)),
      queue_sizes_(options_.queues, kQueueSize),
      bounce_(static_cast<std::byte*>(std::aligned_alloc(kBounceAlign, kBounceBytes)), &std::free),
      done_(options_.queues),
      limited_(options_.bps_limit != 0),
      bucket_(options_.bps_limit, std::max(options_.bps_limit / 10, kMinBurst), std::chrono::steady_clock::now()) {
  for (size_t i = 0; i < kRequests; ++i) {
    requests_.push_back(std::make_unique<Request>());
    requests_.back()->number = i;
    requests_.back()->iov.reserve(kQueueSize + 8);
    requests_.back()->io.segments.reserve(kQueueSize + 8);
    free_.push_back(requests_.back().get());
  }
  for (auto& done : done_) done.reserve(kQueueSize);
}

absl::StatusOr<std::unique_ptr<VirtioBlk>> VirtioBlk::Create(DiskImage image, Options options) {
  if (options.queues < 1 || options.queues > kMaxQueues) {
    return absl::InvalidArgumentError(fmt::format("disk queues: {} is not 1 to {}", options.queues, kMaxQueues));
  }
  std::unique_ptr<VirtioBlk> disk(new VirtioBlk(std::move(image), std::move(options)));
  if (disk->options_.replica != nullptr) {
    disk->permits_ = BlockPermits::Create();
    if (disk->permits_ == nullptr) return ErrnoStatus(errno, "eventfd");
  }
  if (const int error = ::io_uring_queue_init(2 * kRequests, &disk->ring_, 0); error < 0) {
    return ErrnoStatus(-error, "io_uring_setup");
  }
  disk->ring_ready_ = true;
  return disk;
}

VirtioBlk::~VirtioBlk() {
  HK_CHECK(in_flight_ == 0);
  if (ring_ready_) ::io_uring_queue_exit(&ring_);
}

uint64_t VirtioBlk::features() const {
  uint64_t features = Bit(VIRTIO_BLK_F_SEG_MAX) | Bit(VIRTIO_BLK_F_BLK_SIZE) | Bit(VIRTIO_BLK_F_FLUSH);
  if (options_.queues > 1) features |= Bit(VIRTIO_BLK_F_MQ);
  if (options_.most_request_bytes != 0) features |= Bit(VIRTIO_BLK_F_SIZE_MAX);
  features |= image_.read_only ? Bit(VIRTIO_BLK_F_RO) : Bit(VIRTIO_BLK_F_DISCARD) | Bit(VIRTIO_BLK_F_WRITE_ZEROES);
  return features;
}

void VirtioBlk::ReadConfig(uint64_t offset, std::span<std::byte> data) {
  virtio_blk_config config{};
  config.capacity = image_.bytes / kSectorBytes;
  config.seg_max = kMaxSegments;
  if (options_.most_request_bytes != 0) {
    const uint64_t pages = options_.most_request_bytes / kMaxSegments / kPageSize;
    config.size_max = static_cast<uint32_t>(std::clamp<uint64_t>(pages, 1, kMostSegmentPages) * kPageSize);
  }
  config.blk_size = std::max<uint32_t>(image_.alignment, kSectorBytes);
  config.num_queues = options_.queues;
  config.max_discard_sectors = config.max_write_zeroes_sectors = kMaxZeroSectors;
  config.max_discard_seg = config.max_write_zeroes_seg = 1;
  config.discard_sector_alignment = config.blk_size / kSectorBytes;
  config.write_zeroes_may_unmap = 1;
  ReadBlock(std::as_bytes(std::span(&config, 1)), offset, data);
}

void VirtioBlk::Activate(VirtioRun* run) {
  run_ = run;
  absl::Status status = run->loop->Watch(ring_.ring_fd, [this] { OnCompletions(); });
  if (status.ok() && permits_ != nullptr) {
    status = run->loop->Watch(permits_->event(), [this] { OnPermits(); });
  }
  if (!status.ok()) run->transport->MarkBroken(status);
}

void VirtioBlk::Stop() {
  while (in_flight_ > 0) {
    io_uring_cqe* cqe = nullptr;
    const int error = ::io_uring_submit_and_wait(&ring_, 1);
    if (error < 0 && error != -EINTR) ::usleep(kRetryUs);  // out of memory, for now
    while (::io_uring_peek_cqe(&ring_, &cqe) == 0) {
      auto* const request = static_cast<Request*>(::io_uring_cqe_get_data(cqe));
      const int result = cqe->res;
      ::io_uring_cqe_seen(&ring_, cqe);
      --in_flight_;
      // Of a transfer it is not known whether all of it was done; of a flush it is.
      TellEnd(request, request->told == Request::Told::kFlush && result >= 0);
      Free(request);
    }
  }
  run_->loop->Unwatch(ring_.ring_fd);
  if (permits_ != nullptr) {
    run_->loop->Unwatch(permits_->event());
    permits_->EndRun();
    for (const auto& request : requests_) {
      if (std::exchange(request->waiting, false)) Free(request.get());
    }
  }
  run_->loop->SetTimer(std::nullopt);
  for (auto& done : done_) done.clear();
  starved_ = 0;
  run_ = nullptr;
}

// Looks up every so often: what the kernel did not take for want of memory is submitted again.
absl::Status VirtioBlk::Drain(Monotonic deadline) {
  while (in_flight_ > 0) {
    const Monotonic now = std::chrono::steady_clock::now();
    if (now >= deadline) return absl::DeadlineExceededError("I/O in flight does not end");
    SubmitAll();
    const auto left = std::min<std::chrono::nanoseconds>(deadline - now, kDrainLook);
    __kernel_timespec wait{.tv_sec = 0, .tv_nsec = left.count()};
    io_uring_cqe* cqe = nullptr;
    static_cast<void>(::io_uring_wait_cqe_timeout(&ring_, &cqe, &wait));
    Reap();
  }
  PublishDone();
  const bool told = std::all_of(done_.begin(), done_.end(), [](const auto& done) { return done.empty(); });
  // The driver of a broken device resets it and asks again.
  if (!told && !run_->transport->broken()) return absl::UnavailableError("the rings are not there to answer in");
  return absl::OkStatus();
}

// What is asked for is submitted in one system call, and what the kernel has done at once (from its page cache, or on a
// device that does not wait) goes back in the same session and with the same interrupt.
void VirtioBlk::OnDoorbell(uint16_t index) {
  ServeQueue(run_, index, [this, index](Virtqueue& queue) -> absl::StatusOr<bool> {
    const absl::StatusOr<bool> all = TakeRequests(index, &queue);
    SubmitAll();
    Reap();
    SubmitAll();  // what was continued
    AddDone(index, &queue);
    return all;
  });
  PublishDone();  // of other queues
}

absl::StatusOr<bool> VirtioBlk::TakeRequests(uint16_t index, Virtqueue* queue) {
  for (;;) {
    if (!MayBegin()) {
      starved_ |= uint64_t{1} << index;
      return false;
    }
    if (limited_ && !HK_MUTANT(disk_limit_ignored) && !bucket_.MayStart(std::chrono::steady_clock::now())) {
      starved_ |= uint64_t{1} << index;
      SetTimer(bucket_.NextStart());
      return false;
    }
    Request* const request = free_.back();
    HK_ASSIGN_OR_RETURN(const bool popped, queue->Pop(&request->chain));
    if (!popped) return true;
    free_.pop_back();
    request->queue = index;
    pinned_bytes_ += PinnedBy(*request);
    if (absl::Status status = Begin(request); !status.ok()) {
      Free(request);
      return status;
    }
  }
}

uint64_t VirtioBlk::PinnedBy(const Request& request) {
  return request.chain.readable_bytes + request.chain.writable_bytes;
}

bool VirtioBlk::MayBegin() const {
  if (free_.empty()) return false;
  return options_.most_pinned_bytes == 0 || pinned_bytes_ < options_.most_pinned_bytes ||
         HK_MUTANT(disk_pins_without_bound);
}

void VirtioBlk::Free(Request* request) {
  pinned_bytes_ -= PinnedBy(*request);
  request->chain.Release();
  free_.push_back(request);
}

// 5.2.6. Where one descriptor ends and the next begins means nothing (2.7.4.3).
absl::Status VirtioBlk::Begin(Request* request) {
  virtio_blk_outhdr header{};
  const size_t got = CopyFrom(request->chain, 0, std::as_writable_bytes(std::span(&header, 1)));
  if (got != sizeof(header) || request->chain.writable_bytes == 0) {
    return absl::InvalidArgumentError("disk request without a header or room for its status");
  }
  request->type = header.type;
  request->data_bytes = 0;
  request->iov.clear();
  request->iov_first = 0;
  // A sector beyond 2^55 would wrap; it is beyond every image.
  request->offset = header.sector > image_.bytes ? image_.bytes : header.sector * kSectorBytes;
  switch (header.type) {
    case VIRTIO_BLK_T_IN:
      BeginTransfer(request, false);
      break;
    case VIRTIO_BLK_T_OUT:
      BeginTransfer(request, true);
      break;
    case VIRTIO_BLK_T_FLUSH:
      if (image_.read_only) {
        Finish(request, VIRTIO_BLK_S_OK);
      } else {
        if (options_.replica != nullptr) {
          request->flush = options_.replica->FlushBegins();
          request->told = Request::Told::kFlush;
        }
        Submit(request);
      }
      break;
    case VIRTIO_BLK_T_GET_ID:
      BeginIdentify(request);
      break;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
      BeginZeroing(request);
      break;
    default:
      Finish(request, VIRTIO_BLK_S_UNSUPP);
  }
  return absl::OkStatus();
}

void VirtioBlk::BeginIdentify(Request* request) {
  std::array<std::byte, kSerialBytes> serial{};
  std::memcpy(serial.data(), options_.serial.data(), std::min(options_.serial.size(), kSerialBytes));
  const uint64_t room = request->chain.writable_bytes - 1;
  request->data_bytes = CopyTo(request->chain, 0, std::span(serial).first(std::min<uint64_t>(room, kSerialBytes)));
  Finish(request, VIRTIO_BLK_S_OK);
}

void VirtioBlk::BeginTransfer(Request* request, bool write) {
  request->bytes =
      write ? request->chain.readable_bytes - sizeof(virtio_blk_outhdr) : request->chain.writable_bytes - 1;
  const bool inside = request->bytes <= image_.bytes && request->offset <= image_.bytes - request->bytes;
  const bool whole = request->bytes % kSectorBytes == 0 && request->bytes % image_.alignment == 0 &&
                     request->offset % image_.alignment == 0;
  if (!inside || !whole || (write && image_.read_only)) return Finish(request, VIRTIO_BLK_S_IOERR);
  if (!write) request->data_bytes = request->bytes;
  if (request->bytes == 0) return Finish(request, VIRTIO_BLK_S_OK);
  bucket_.Spend(request->bytes);
  request->suits = GatherData(request, write);
  request->io.kind = write ? BlockIoKind::kWrite : BlockIoKind::kRead;
  if (write && !MayChange(request)) return;
  StartTransfer(request, write);
}

void VirtioBlk::StartTransfer(Request* request, bool write) {
  request->gaps.assign(1, {.offset = request->offset, .bytes = request->bytes});
  request->next_gap = 0;
  TellBegin(request);
  if (!request->suits) return TransferThroughBounce(request, write);
  if (request->told == Request::Told::kIo && !write) options_.replica->Serve(&request->io, &request->gaps);
  if (!SubmitGap(request)) Finish(request, VIRTIO_BLK_S_OK);
}

bool VirtioBlk::MayChange(Request* request) {
  request->io.extent = {.offset = request->offset, .bytes = request->bytes};
  if (options_.replica == nullptr || HK_MUTANT(disk_writes_unasked)) return true;
  request->waiting = !options_.replica->MayChange(request->io, permits_->CallbackFor(request->number));
  return !request->waiting;
}

void VirtioBlk::OnPermits() {
  for (const BlockPermits::Permit& permit : permits_->Take()) {
    Request* const request = requests_[permit.request].get();
    request->waiting = false;
    if (!permit.status.ok()) {
      Finish(request, VIRTIO_BLK_S_IOERR);
      continue;
    }
    if (!MayChange(request)) continue;
    if (request->io.kind == BlockIoKind::kErase) {
      StartZeroing(request);
    } else {
      StartTransfer(request, true);
    }
  }
  SubmitAll();
  Reap();
  SubmitAll();
  PublishDone();
}

void VirtioBlk::TellBegin(Request* request) {
  if (options_.replica == nullptr) return;
  request->io.extent = {.offset = request->offset, .bytes = request->bytes};
  options_.replica->Begin(&request->io, request->chain.dma);
  request->told = Request::Told::kIo;
}

void VirtioBlk::TellEnd(Request* request, bool ok) {
  switch (std::exchange(request->told, Request::Told::kNothing)) {
    case Request::Told::kNothing:
      return;
    case Request::Told::kIo:
      return options_.replica->End(&request->io, ok);
    case Request::Told::kFlush:
      return options_.replica->FlushEnds(request->flush, ok);
  }
}

bool VirtioBlk::SubmitGap(Request* request) {
  if (request->next_gap == request->gaps.size()) return false;
  const BlockExtent gap = request->gaps[request->next_gap++];
  request->offset = gap.offset;
  request->bytes = gap.bytes;
  request->iov.clear();
  request->iov_first = 0;
  uint64_t skip = gap.offset - request->io.extent.offset, left = gap.bytes;
  for (const BlockSegment& segment : request->io.segments) {
    const uint64_t skipped = std::min<uint64_t>(skip, segment.bytes.size());
    skip -= skipped;
    const uint64_t take = std::min<uint64_t>(left, segment.bytes.size() - skipped);
    if (take == 0) continue;
    request->iov.push_back({.iov_base = segment.bytes.data() + skipped, .iov_len = take});
    left -= take;
  }
  HK_CHECK(left == 0);
  Submit(request);
  return true;
}

bool VirtioBlk::GatherData(Request* request, bool write) {
  bool suits = true;
  request->io.extent = {.offset = request->offset, .bytes = request->bytes};
  request->io.segments.clear();
  uint64_t skip = write ? sizeof(virtio_blk_outhdr) : 0;
  uint64_t left = request->bytes;
  for (const DmaChain::Piece& piece : write ? request->chain.readable() : request->chain.writable()) {
    const uint64_t skipped = std::min<uint64_t>(skip, piece.bytes.size());
    skip -= skipped;
    const uint64_t take = std::min<uint64_t>(left, piece.bytes.size() - skipped);
    if (take == 0) continue;
    std::byte* const base = piece.bytes.data() + skipped;
    suits = suits && reinterpret_cast<uintptr_t>(base) % image_.alignment == 0 && take % image_.alignment == 0;
    request->io.segments.push_back({.gpa = Gpa(piece.gpa.value() + skipped), .bytes = {base, take}});
    left -= take;
  }
  return suits;
}

// Memory that O_DIRECT does not take: copied, piece by piece, while everything else of this disk waits. Linux never
// asks for it in its block layer's requests.
void VirtioBlk::TransferThroughBounce(Request* request, bool write) {
  const int fd = image_.fd.get();
  for (uint64_t done = 0; done < request->bytes;) {
    const std::span<std::byte> bounce(bounce_.get(), std::min<uint64_t>(kBounceBytes, request->bytes - done));
    const auto offset = static_cast<off_t>(request->offset + done);
    if (write) CopyFrom(request->chain, sizeof(virtio_blk_outhdr) + done, bounce);
    const ssize_t moved =
        write ? ::pwrite(fd, bounce.data(), bounce.size(), offset) : ::pread(fd, bounce.data(), bounce.size(), offset);
    if (moved < 0 && errno == EINTR) continue;
    if (moved != static_cast<ssize_t>(bounce.size())) return Finish(request, VIRTIO_BLK_S_IOERR);
    if (!write) CopyTo(request->chain, done, bounce);
    done += bounce.size();
  }
  Finish(request, VIRTIO_BLK_S_OK);
}

// Discard and write-zeroes (5.2.6.1): one segment, since we say so in the configuration.
void VirtioBlk::BeginZeroing(Request* request) {
  virtio_blk_discard_write_zeroes segment{};
  const uint64_t length = request->chain.readable_bytes - sizeof(virtio_blk_outhdr);
  if (image_.read_only || length != sizeof(segment)) return Finish(request, VIRTIO_BLK_S_IOERR);
  CopyFrom(request->chain, sizeof(virtio_blk_outhdr), std::as_writable_bytes(std::span(&segment, 1)));
  const bool discard = request->type == VIRTIO_BLK_T_DISCARD;
  const uint32_t allowed_flags = discard ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
  if (segment.flags & ~allowed_flags) return Finish(request, VIRTIO_BLK_S_UNSUPP);
  const uint64_t sectors = image_.bytes / kSectorBytes;
  if (segment.num_sectors > kMaxZeroSectors || segment.num_sectors > sectors ||
      segment.sector > sectors - segment.num_sectors) {
    return Finish(request, VIRTIO_BLK_S_IOERR);
  }
  request->offset = segment.sector * kSectorBytes;
  request->bytes = segment.num_sectors * kSectorBytes;
  if (request->bytes == 0) return Finish(request, VIRTIO_BLK_S_OK);
  const bool unmap = discard || (segment.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) != 0;
  request->mode = FALLOC_FL_KEEP_SIZE | (unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
  request->io.segments.clear();
  request->io.kind = BlockIoKind::kErase;
  if (MayChange(request)) StartZeroing(request);
}

void VirtioBlk::StartZeroing(Request* request) {
  TellBegin(request);
  Submit(request);
}

void VirtioBlk::Submit(Request* request) {
  io_uring_sqe* const sqe = ::io_uring_get_sqe(&ring_);
  HK_CHECK(sqe != nullptr);  // the ring holds twice the requests there are
  const int fd = image_.fd.get();
  const iovec* const iov = request->iov.data() + request->iov_first;
  const auto count = static_cast<unsigned>(request->iov.size() - request->iov_first);
  switch (request->type) {
    case VIRTIO_BLK_T_IN:
      ::io_uring_prep_readv(sqe, fd, iov, count, request->offset);
      break;
    case VIRTIO_BLK_T_OUT:
      ::io_uring_prep_writev(sqe, fd, iov, count, request->offset);
      break;
    case VIRTIO_BLK_T_FLUSH:
      ::io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
      break;
    default:
      ::io_uring_prep_fallocate(sqe, fd, request->mode, static_cast<off_t>(request->offset),
                                static_cast<off_t>(request->bytes));
  }
  ::io_uring_sqe_set_data(sqe, request);
  ++in_flight_;
}

void VirtioBlk::SetTimer(Monotonic when) {
  run_->loop->SetTimer(when, [this] {
    SubmitAll();
    PublishDone();
  });
}

void VirtioBlk::SubmitAll() {
  if (::io_uring_sq_ready(&ring_) == 0) return;
  const int submitted = ::io_uring_submit(&ring_);
  // What the kernel did not take now (no memory) stays in the ring.
  if (submitted < 0) SetTimer(std::chrono::steady_clock::now() + std::chrono::microseconds(kRetryUs));
}

void VirtioBlk::Reap() {
  io_uring_cqe* cqe = nullptr;
  while (::io_uring_peek_cqe(&ring_, &cqe) == 0) {
    auto* const request = static_cast<Request*>(::io_uring_cqe_get_data(cqe));
    const int result = cqe->res;
    ::io_uring_cqe_seen(&ring_, cqe);
    --in_flight_;
    OnCompletion(request, result);
  }
}

void VirtioBlk::OnCompletions() {
  Reap();
  SubmitAll();  // what was continued
  PublishDone();
}

void VirtioBlk::OnCompletion(Request* request, int result) {
  if (result == -EINTR || result == -EAGAIN) return Submit(request);
  switch (request->type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT: {
      if (result <= 0) return Finish(request, VIRTIO_BLK_S_IOERR);
      auto moved = static_cast<uint64_t>(result);
      request->offset += moved;
      request->bytes -= moved;
      if (request->bytes == 0 && SubmitGap(request)) return;
      if (request->bytes == 0) return Finish(request, VIRTIO_BLK_S_OK);
      // Short: go on where it stopped.
      while (moved > 0) {
        iovec& first = request->iov[request->iov_first];
        const size_t take = std::min<uint64_t>(moved, first.iov_len);
        first.iov_base = static_cast<std::byte*>(first.iov_base) + take;
        first.iov_len -= take;
        moved -= take;
        if (first.iov_len == 0) ++request->iov_first;
      }
      return Submit(request);
    }
    case VIRTIO_BLK_T_FLUSH:
      return Finish(request, result < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
    default:
      break;
  }
  if (result == 0) return Finish(request, VIRTIO_BLK_S_OK);
  if (result != -EOPNOTSUPP) return Finish(request, VIRTIO_BLK_S_IOERR);
  if (request->type == VIRTIO_BLK_T_DISCARD) return Finish(request, VIRTIO_BLK_S_OK);  // a hint
  if (request->mode & FALLOC_FL_ZERO_RANGE) {
    request->mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;  // tmpfs has only this
    return Submit(request);
  }
  Finish(request, WriteZeros(request->offset, request->bytes) ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR);
}

bool VirtioBlk::WriteZeros(uint64_t offset, uint64_t bytes) {
  std::memset(bounce_.get(), 0, kBounceBytes);
  while (bytes > 0) {
    const ssize_t count =
        ::pwrite(image_.fd.get(), bounce_.get(), std::min<uint64_t>(bytes, kBounceBytes), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    offset += static_cast<uint64_t>(count);
    bytes -= static_cast<uint64_t>(count);
  }
  return true;
}

// The status byte is the last one the device may write, and counts as written (5.2.6).
void VirtioBlk::Finish(Request* request, uint8_t status) {
  TellEnd(request, status == VIRTIO_BLK_S_OK);
  const std::byte value{status};
  CopyTo(request->chain, request->chain.writable_bytes - 1, std::span(&value, 1));
  // What lies between data and status was not written: say only what was.
  const uint64_t data = status == VIRTIO_BLK_S_OK ? request->data_bytes : 0;
  Free(request);
  done_[request->queue].push_back({.head = request->chain.head, .written = static_cast<uint32_t>(data + 1)});
}

void VirtioBlk::AddDone(uint16_t index, Virtqueue* queue) {
  for (const Done& done : done_[index]) queue->AddUsed(done.head, done.written);
  done_[index].clear();
}

// Gives finished requests back, and has queues looked at that waited for a slot or for the rate limit.
void VirtioBlk::PublishDone() {
  for (uint16_t index = 0; index < options_.queues; ++index) {
    if (done_[index].empty()) continue;
    ReturnUsed(run_, index, [&](Virtqueue& queue) { AddDone(index, &queue); });
  }
  if (starved_ == 0 || !MayBegin()) return;
  if (limited_ && !bucket_.MayStart(std::chrono::steady_clock::now())) return;
  for (uint64_t bits = std::exchange(starved_, 0); bits != 0; bits &= bits - 1) {
    run_->transport->Ring(static_cast<uint16_t>(std::countr_zero(bits)));
  }
}

}  // namespace hk
