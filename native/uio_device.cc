#include "uio_device.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

namespace lunette {

int UioDevice::Open(int memory_fd, int event_fd, int kick_fd, size_t size, std::unique_ptr<UioDevice>* out,
                    const char** reason) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
  if (memory == MAP_FAILED) return -errno;
  *reason = TcmuRing::Check(static_cast<uint8_t*>(memory), size);
  if (*reason != nullptr) {
    munmap(memory, size);
    return -EPROTO;
  }
  out->reset(new UioDevice(static_cast<uint8_t*>(memory), size, event_fd, kick_fd));
  return 0;
}

UioDevice::UioDevice(uint8_t* memory, size_t size, int event_fd, int kick_fd)
    : memory_(memory),
      size_(size),
      event_fd_(event_fd),
      kick_fd_(kick_fd),
      guard_(memory, size),
      ring_(memory, size) {}

UioDevice::~UioDevice() { munmap(memory_, size_); }

int UioDevice::Acknowledge() {
  uint32_t count;
  ssize_t done;
  do {
    done = read(event_fd_, &count, sizeof count);
  } while (done < 0 && errno == EINTR);
  if (done == sizeof count) return 0;
  return done < 0 ? -errno : -EIO;
}

int UioDevice::Kick() {
  uint32_t one = 1;
  ssize_t done;
  do {
    done = write(kick_fd_, &one, sizeof one);
  } while (done < 0 && errno == EINTR);
  return done < 0 ? -errno : 0;
}

RingState UioDevice::Fetch(uint32_t* out, size_t capacity, size_t* words, size_t* records) {
  *words = 0;
  *records = 0;
  return guard_.torn() ? RingState::kBroken : ring_.Fetch(out, capacity, words, records);
}

RingState UioDevice::Complete(const uint32_t* completions, size_t words) {
  // What was read from a page that is not there is not what the initiator sent.
  return guard_.torn() ? RingState::kBroken : ring_.Complete(completions, words);
}

const char* UioDevice::reason() const {
  if (guard_.torn()) return "the kernel has taken a page of the data area away while it was in use";
  return ring_.reason() == nullptr ? "" : ring_.reason();
}

}  // namespace lunette
