#include "io_queue.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <cstring>
#include <system_error>

#include "file_ops.h"
#include "inflate.h"
#include "io_flusher.h"
#include "locks.h"
#include "streams.h"
#include "transfer.h"

namespace lunette {
namespace {

bool IsQuick(Operation operation) {
  switch (operation) {
    case Operation::kRead:
    case Operation::kWrite:
    case Operation::kSeekData:
    case Operation::kSeekHole:
      return true;
    default:
      return false;
  }
}

int64_t Execute(Request& r) {
  switch (r.operation) {
    case Operation::kRead:
      return ReadAt(r.fd, r.segments.data(), r.segments.size(), r.offset);
    case Operation::kWrite:
      return WriteAt(r.fd, r.segments.data(), r.segments.size(), r.offset);
    case Operation::kDataSync:
      return DataSync(r.fd);
    case Operation::kTruncate:
      return Truncate(r.fd, r.length);
    case Operation::kPunchHole:
      return PunchHole(r.fd, r.offset, r.length);
    case Operation::kZeroRange:
      return ZeroRange(r.fd, r.offset, r.length, false);
    case Operation::kAllocate:
      return Allocate(r.fd, r.offset, r.length);
    case Operation::kSeekData:
      return SeekData(r.fd, r.offset);
    case Operation::kSeekHole:
      return SeekHole(r.fd, r.offset);
    case Operation::kCloneRange:
      return CloneRange(r.source, r.source_offset, r.fd, r.offset, r.length);
    case Operation::kCopyRange:
      return CopyByKernel(r.source, r.source_offset, r.fd, r.offset, r.length);
    case Operation::kCopySparse: {
      // What the words have no room for comes in memory.
      double unit = 0;
      if (r.segments.size() != 1 || r.segments[0].iov_len != sizeof unit) return -EINVAL;
      memcpy(&unit, r.segments[0].iov_base, sizeof unit);
      return CopyData(r.source, r.source_offset, r.fd, r.offset, r.length, static_cast<int64_t>(unit));
    }
    case Operation::kFindZeros:
      if (r.segments.size() != 1) return -EINVAL;
      return FindZeros(r.fd, r.offset, r.length, r.source_offset, static_cast<uint8_t*>(r.segments[0].iov_base),
                       r.segments[0].iov_len);
    case Operation::kCompare:
      return CompareData(r.fd, r.offset, r.source, r.source_offset, r.length);
    case Operation::kDeviceDiscard:
      return DeviceDiscard(r.fd, r.offset, r.length);
    case Operation::kDeviceZeroOut:
      return DeviceZeroOut(r.fd, r.offset, r.length);
    case Operation::kDeviceZeroRange:
      return ZeroRange(r.fd, r.offset, r.length, true);
    case Operation::kLock:
      return LockRange(r.fd, r.offset, r.length);
    case Operation::kUnlock:
      return UnlockRange(r.fd, r.offset, r.length);
    case Operation::kTestLock:
      return TestRange(r.fd, r.offset, r.length);
    case Operation::kInflate: {
      if (r.segments.size() != 2) return -EINVAL;
      const iovec& input = r.segments[0];
      const iovec& output = r.segments[1];
      return Inflate(static_cast<DeflateForm>(r.offset), static_cast<const uint8_t*>(input.iov_base), input.iov_len,
                     static_cast<uint8_t*>(output.iov_base), output.iov_len);
    }
    case Operation::kUnpack: {
      const size_t count = r.segments.size() - 2;
      if (r.segments.size() < 3 || r.segments[0].iov_len != count * 3 * sizeof(int32_t)) return -EINVAL;
      return Unpack(static_cast<StreamForm>(r.offset), r.segments[1], static_cast<int32_t*>(r.segments[0].iov_base),
                    r.segments.data() + 2, count);
    }
    case Operation::kPack: {
      if (r.segments.size() != 3 || r.segments[0].iov_len % sizeof(int32_t) != 0 || r.length <= 0) return -EINVAL;
      const Packing packing = {static_cast<StreamForm>(r.offset), r.source, static_cast<int>(r.source_offset)};
      return Pack(packing, static_cast<size_t>(r.length), r.segments[1], r.segments[2],
                  static_cast<int32_t*>(r.segments[0].iov_base), r.segments[0].iov_len / sizeof(int32_t));
    }
  }
  return -EINVAL;
}

uint64_t NowUs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

}  // namespace

void IoQueue::Lane::Push(Request* request) {
  request->next = nullptr;
  if (last == nullptr) {
    first = request;
  } else {
    last->next = request;
  }
  last = request;
}

Request* IoQueue::Lane::Pop() {
  Request* request = first;
  first = request->next;
  if (first == nullptr) last = nullptr;
  return request;
}

IoQueue::IoQueue(unsigned threads, Notify notify, void* context) : notify_(notify), context_(context) {
  SetThreads(threads);
}

IoQueue::~IoQueue() {
  Stop();
  for (Request* request = TakeDone(); request != nullptr;) {
    Request* next = request->next;
    delete request;
    request = next;
  }
  while (free_ != nullptr) {
    Request* next = free_->next;
    delete free_;
    free_ = next;
  }
}

Request* IoQueue::Prepare() {
  Request* request = free_;
  if (request == nullptr) return new Request();
  free_ = request->next;
  return request;
}

void IoQueue::Recycle(Request* request) {
  request->segments.clear();
  request->next = free_;
  free_ = request;
}

void IoQueue::Submit(Request* first) {
  bool wake;
  {
    std::lock_guard<std::mutex> hold(lock_);
    for (Request* request = first; request != nullptr;) {
      Request* next = request->next;
      request->sequence = sequence_++;
      (IsQuick(request->operation) ? quick_ : slow_).Push(request);
      request = next;
    }
    wake = idle_ > 0;
  }
  // One is enough: a thread that leaves work behind wakes the next. A wakeup costs the event loop more than a cached read.
  if (wake) wake_.notify_one();
}

Request* IoQueue::TakeDone() {
  std::lock_guard<std::mutex> hold(done_lock_);
  Request* first = done_.first;
  done_ = Lane();
  return first;
}

// Called with lock_ held.
Request* IoQueue::Next() {
  unsigned slow_limit = wanted_ > 1 ? wanted_ - 1 : 1;
  bool slow_ready = slow_.first != nullptr && (slow_running_ < slow_limit || stopping_);
  if (quick_.first != nullptr && (!slow_ready || quick_.first->sequence < slow_.first->sequence)) return quick_.Pop();
  if (!slow_ready) return nullptr;
  slow_running_++;
  return slow_.Pop();
}

void IoQueue::Finish(Request* request) {
  bool first;
  {
    std::lock_guard<std::mutex> hold(done_lock_);
    first = done_.first == nullptr;
    done_.Push(request);
  }
  if (first) notify_(context_);
}

void IoQueue::Work() {
  std::unique_lock<std::mutex> hold(lock_);
  for (;;) {
    if (running_ > wanted_ && !stopping_) break;
    Request* request = Next();
    if (request == nullptr) {
      if (stopping_) break;
      idle_++;
      wake_.wait(hold);
      idle_--;
      continue;
    }
    bool wake = idle_ > 0 && (quick_.first != nullptr || slow_.first != nullptr);
    bool slow = !IsQuick(request->operation);
    hold.unlock();
    if (wake) wake_.notify_one();
    FollowIoFlusher();
    uint64_t start = NowUs();
    request->result = Execute(*request);
    request->elapsed_us = static_cast<uint32_t>(NowUs() - start);
    Finish(request);
    hold.lock();
    if (slow) slow_running_--;
  }
  running_--;
  // Whoever was woken for this thread's sake looks again.
  wake_.notify_one();
}

unsigned IoQueue::SetThreads(unsigned threads) {
  std::lock_guard<std::mutex> hold(lock_);
  if (stopping_) return wanted_;
  wanted_ = threads > 0 ? threads : 1;
  // Signals are the main thread's.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (; running_ < wanted_; running_++) threads_.emplace_back([this] { Work(); });
  } catch (const std::system_error&) {
    // The process has reached its limit: fewer threads do as well, none does not.
    wanted_ = running_;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (running_ > wanted_) wake_.notify_all();
  return wanted_;
}

void IoQueue::Stop() {
  std::vector<std::thread> threads;
  {
    std::lock_guard<std::mutex> hold(lock_);
    stopping_ = true;
    threads.swap(threads_);
  }
  wake_.notify_all();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace lunette
