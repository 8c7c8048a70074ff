#include "io_flusher.h"

#include <errno.h>

#include <atomic>

#ifdef __linux__
#include <sys/prctl.h>
#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif
#endif

namespace lunette {
namespace {

std::atomic<bool> wanted{false};

int SetForThread() {
#ifdef __linux__
  return prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0 ? 0 : -errno;
#else
  return -ENOSYS;
#endif
}

}  // namespace

int BecomeIoFlusher() {
  int result = SetForThread();
  if (result == 0) wanted.store(true, std::memory_order_relaxed);
  return result;
}

void FollowIoFlusher() {
  thread_local bool set = false;
  if (set || !wanted.load(std::memory_order_relaxed)) return;
  set = true;
  SetForThread();
}

}  // namespace lunette
