#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "direct_io.h"
#include "file_ops.h"
#include "locks.h"

namespace lunette {
namespace {

constexpr int64_t kDataAt = 1 << 20;
constexpr size_t kDataLength = 1 << 16;

int OpenUnnamed(const char* directory) {
#if defined(O_TMPFILE)
  int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return fd;
#endif
  std::string name = std::string(directory) + "/.lunette-probe-XXXXXX";
  int named = mkstemp(name.data());
  if (named >= 0) {
    fcntl(named, F_SETFD, FD_CLOEXEC);
    unlink(name.c_str());
  }
  return named;
}

int64_t TransferAt(DirectMode mode, int fd, char* memory) {
  iovec segment{memory, 4096};
  return TransferNow(mode, fd, &segment, 1, kDataAt);
}

}  // namespace

int64_t ProbeDirectory(const char* path) {
  int fd = OpenUnnamed(path);
  if (fd < 0) return -errno;
  std::string memory(kDataLength, 'x');
  iovec segment{memory.data(), memory.size()};
  int64_t result = WriteAt(fd, &segment, 1, kDataAt);
  if (result >= 0) {
    uint32_t found = 0;
    if (TransferAt(DirectMode::kReadCached, fd, memory.data()) != -EOPNOTSUPP) found |= kCachedReads;
    if (TransferAt(DirectMode::kWriteNoWait, fd, memory.data()) != -EOPNOTSUPP) found |= kNoWaitWrites;
    if (SeekData(fd, 0) > 0) found |= kSeekData;
    if (LockRange(fd, 100, 1) == 0) found |= kOfdLocks;
    if (ZeroRange(fd, kDataAt, 4096, false) == 0) found |= kZeroesRanges;
    if (PunchHole(fd, kDataAt, 4096) == 0) found |= kPunchesHoles;
    result = found;
  }
  close(fd);
  return result;
}

}  // namespace lunette
