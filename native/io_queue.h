// File operations on a pool of threads. Knows nothing of JavaScript: whoever owns the queue submits requests in batches from one
// thread and takes completions from the same thread; `notify` is called from pool threads when completions wait.
#pragma once

#include <sys/uio.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace lunette {

enum class Operation : uint32_t {
  kRead,
  kWrite,
  kDataSync,
  kTruncate,
  kPunchHole,
  kZeroRange,
  kAllocate,
  kSeekData,
  kSeekHole,
  kCloneRange,
  kCopyRange,
  kDeviceDiscard,
  kDeviceZeroOut,
  kDeviceZeroRange,
  kLock,
  kUnlock,
  kTestLock,
  // No file: two segments, stream and output; `offset` is the DeflateForm.
  kInflate,
  kCopySparse,
  kFindZeros,
  // `source` -1: with zeros.
  kCompare,
  // No file: places, packed bytes, then an output for each place; `offset` is the StreamForm.
  kUnpack,
  // No file: lengths, input and output; `offset` is the StreamForm, `length` the unit, `source` the level, `source_offset` the window's bits.
  kPack,
};

struct Request {
  Operation operation;
  uint32_t slot;  // Whatever the submitter knows the request by.
  int fd;
  int64_t offset;
  int64_t length;
  int source;             // Clone and copy only.
  int64_t source_offset;  // Clone and copy; the unit when looking for zeros.
  std::vector<iovec> segments;
  // Filled in when done: the operation's value or a negative errno, and how long it took on the thread.
  int64_t result;
  uint32_t elapsed_us;
  uint64_t sequence;
  Request* next;
};

class IoQueue {
 public:
  using Notify = void (*)(void* context);

  IoQueue(unsigned threads, Notify notify, void* context);
  // Runs what was submitted to its end first.
  ~IoQueue();
  IoQueue(const IoQueue&) = delete;
  IoQueue& operator=(const IoQueue&) = delete;

  // A request to fill in. It is the queue's again after Submit and Recycle.
  Request* Prepare();
  void Recycle(Request* request);
  // Takes a chain of requests (linked by `next`), in order.
  void Submit(Request* first);
  // All requests that are done, as a chain in order of completion; nullptr when there are none.
  Request* TakeDone();

  // Returns how many there are now: fewer when the system allows no more; 0 means that the queue cannot work.
  unsigned SetThreads(unsigned threads);
  // Runs what was submitted to its end and joins the threads. Completions can still be taken.
  void Stop();

 private:
  // First in, first out.
  struct Lane {
    Request* first = nullptr;
    Request* last = nullptr;
    void Push(Request* request);
    Request* Pop();
  };

  void Work();
  Request* Next();
  void Finish(Request* request);

  const Notify notify_;
  void* const context_;
  Request* free_ = nullptr;  // Submitter's thread only.

  std::mutex lock_;
  std::condition_variable wake_;
  Lane quick_;
  // What may take long (syncs, copies, discards) leaves at least one thread to reads and writes.
  Lane slow_;
  unsigned slow_running_ = 0;
  unsigned idle_ = 0;
  unsigned running_ = 0;
  unsigned wanted_ = 0;
  uint64_t sequence_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;

  std::mutex done_lock_;
  Lane done_;
};

}  // namespace lunette
