// A UIO device as TCMU makes them: memory shared with the kernel, a descriptor that says when the kernel has work and is told when we
// have done some. Knows no JavaScript. For tests the three descriptors differ; of a real device all are one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "bus_guard.h"
#include "tcmu_ring.h"

namespace lunette {

class UioDevice {
 public:
  // Maps the memory. Returns 0, or a negative errno; -EPROTO when it holds no ring, with the reason in `reason`.
  // `size` must be exactly what the kernel says: it refuses every other.
  static int Open(int memory_fd, int event_fd, int kick_fd, size_t size, std::unique_ptr<UioDevice>* out, const char** reason);
  // Nobody may touch the memory any more: not native I/O in flight either.
  ~UioDevice();
  UioDevice(const UioDevice&) = delete;
  UioDevice& operator=(const UioDevice&) = delete;

  // Takes note of events so far: before the ring is read, or a wakeup is lost. Returns 0, -EAGAIN when there were none, -EIO when
  // the device is gone.
  int Acknowledge();
  // Tells the kernel that completions are in the ring; it handles them within the call. Returns 0 or a negative errno.
  int Kick();

  RingState Fetch(uint32_t* out, size_t capacity, size_t* words, size_t* records);
  RingState Complete(const uint32_t* completions, size_t words);
  void Restart() { ring_.Restart(); }
  const char* reason() const;

  uint8_t* memory() const { return memory_; }
  size_t size() const { return size_; }
  int event_fd() const { return event_fd_; }
  uint32_t flags() const { return ring_.flags(); }

 private:
  UioDevice(uint8_t* memory, size_t size, int event_fd, int kick_fd);

  uint8_t* const memory_;
  const size_t size_;
  const int event_fd_;
  const int kick_fd_;
  BusGuard guard_;
  TcmuRing ring_;
};

}  // namespace lunette
