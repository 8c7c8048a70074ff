#include "file_ops.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__linux__)
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#else
#include <sys/mount.h>
#include <sys/param.h>
#endif

namespace lunette {
namespace {

#if defined(IOV_MAX)
constexpr size_t kMaxSegments = IOV_MAX;
#else
constexpr size_t kMaxSegments = 1024;
#endif

// Moves past `done` bytes. Returns the first segment that has bytes left.
size_t Advance(iovec* segments, size_t at, size_t count, size_t done) {
  while (at < count && done >= segments[at].iov_len) done -= segments[at++].iov_len;
  if (at < count) {
    segments[at].iov_base = static_cast<char*>(segments[at].iov_base) + done;
    segments[at].iov_len -= done;
  }
  return at;
}

template <typename Call>
int64_t Retry(Call call) {
  int64_t result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : result;
}

}  // namespace

int64_t ReadAt(int fd, iovec* segments, size_t count, int64_t offset) {
  int64_t total = 0;
  for (size_t at = 0; at < count;) {
    size_t use = count - at < kMaxSegments ? count - at : kMaxSegments;
    int64_t done = Retry([&] { return preadv(fd, segments + at, static_cast<int>(use), offset + total); });
    if (done < 0) return done;
    if (done == 0) break;
    total += done;
    at = Advance(segments, at, count, static_cast<size_t>(done));
  }
  return total;
}

int64_t WriteAt(int fd, iovec* segments, size_t count, int64_t offset) {
  int64_t total = 0;
  for (size_t at = 0; at < count;) {
    size_t use = count - at < kMaxSegments ? count - at : kMaxSegments;
    int64_t done = Retry([&] { return pwritev(fd, segments + at, static_cast<int>(use), offset + total); });
    if (done < 0) return done;
    // A device that takes nothing and reports nothing would keep us here for ever.
    if (done == 0) return -ENOSPC;
    total += done;
    at = Advance(segments, at, count, static_cast<size_t>(done));
  }
  return total;
}

int64_t DataSync(int fd) {
#if defined(__APPLE__)
  // fsync leaves data in the drive's cache there.
  int64_t result = Retry([&] { return fcntl(fd, F_FULLFSYNC); });
  return result == -ENOTSUP ? Retry([&] { return fsync(fd); }) : result;
#else
  return Retry([&] { return fdatasync(fd); });
#endif
}

int64_t Truncate(int fd, int64_t size) {
  return Retry([&] { return ftruncate(fd, size); });
}

#if defined(__linux__)

int64_t PunchHole(int fd, int64_t offset, int64_t length) {
  return Retry([&] { return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length); });
}

int64_t ZeroRange(int fd, int64_t offset, int64_t length, bool keep_size) {
  int mode = FALLOC_FL_ZERO_RANGE | (keep_size ? FALLOC_FL_KEEP_SIZE : 0);
  return Retry([&] { return fallocate(fd, mode, offset, length); });
}

int64_t Allocate(int fd, int64_t offset, int64_t length) {
  return Retry([&] { return fallocate(fd, 0, offset, length); });
}

int64_t CloneRange(int source, int64_t source_offset, int fd, int64_t offset, int64_t length) {
  file_clone_range range{};
  range.src_fd = source;
  range.src_offset = static_cast<uint64_t>(source_offset);
  range.src_length = static_cast<uint64_t>(length);
  range.dest_offset = static_cast<uint64_t>(offset);
  int64_t result = Retry([&] { return ioctl(fd, FICLONERANGE, &range); });
  return result < 0 ? result : length;
}

int64_t CopyRange(int source, int64_t source_offset, int fd, int64_t offset, int64_t length) {
  off64_t from = source_offset;
  off64_t to = offset;
  int64_t total = 0;
  while (total < length) {
    int64_t done =
        Retry([&] { return copy_file_range(source, &from, fd, &to, static_cast<size_t>(length - total), 0); });
    if (done < 0) return total > 0 ? total : done;
    if (done == 0) break;
    total += done;
  }
  return total;
}

int64_t ExchangeNames(const char* one, const char* other) {
  // Not every C library has a function for it.
  return Retry([&] { return syscall(SYS_renameat2, AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE); });
}

int64_t DeviceSize(int fd) {
  uint64_t size = 0;
  int64_t result = Retry([&] { return ioctl(fd, BLKGETSIZE64, &size); });
  return result < 0 ? result : static_cast<int64_t>(size);
}

int64_t DeviceBlockSize(int fd) {
  int size = 0;
  int64_t result = Retry([&] { return ioctl(fd, BLKSSZGET, &size); });
  return result < 0 ? result : size;
}

int64_t DeviceDiscard(int fd, int64_t offset, int64_t length) {
  uint64_t range[2] = {static_cast<uint64_t>(offset), static_cast<uint64_t>(length)};
  return Retry([&] { return ioctl(fd, BLKDISCARD, range); });
}

int64_t DeviceZeroOut(int fd, int64_t offset, int64_t length) {
  uint64_t range[2] = {static_cast<uint64_t>(offset), static_cast<uint64_t>(length)};
  return Retry([&] { return ioctl(fd, BLKZEROOUT, range); });
}

#else

int64_t PunchHole(int, int64_t, int64_t) { return -EOPNOTSUPP; }
int64_t ZeroRange(int, int64_t, int64_t, bool) { return -EOPNOTSUPP; }
int64_t Allocate(int, int64_t, int64_t) { return -EOPNOTSUPP; }
int64_t CloneRange(int, int64_t, int, int64_t, int64_t) { return -EOPNOTSUPP; }
int64_t CopyRange(int, int64_t, int, int64_t, int64_t) { return -EOPNOTSUPP; }
int64_t ExchangeNames(const char*, const char*) { return -EOPNOTSUPP; }
int64_t DeviceSize(int) { return -EOPNOTSUPP; }
int64_t DeviceBlockSize(int) { return -EOPNOTSUPP; }
int64_t DeviceDiscard(int, int64_t, int64_t) { return -EOPNOTSUPP; }
int64_t DeviceZeroOut(int, int64_t, int64_t) { return -EOPNOTSUPP; }

#endif

#if defined(SEEK_DATA) && defined(SEEK_HOLE)
int64_t SeekData(int fd, int64_t offset) {
  return Retry([&] { return lseek(fd, offset, SEEK_DATA); });
}
int64_t SeekHole(int fd, int64_t offset) {
  return Retry([&] { return lseek(fd, offset, SEEK_HOLE); });
}
#else
int64_t SeekData(int, int64_t) { return -EINVAL; }
int64_t SeekHole(int, int64_t) { return -EINVAL; }
#endif

int64_t FileSystemType(int fd) {
  struct statfs facts;
  int64_t result = Retry([&] { return fstatfs(fd, &facts); });
  return result < 0 ? result : static_cast<int64_t>(static_cast<uint32_t>(facts.f_type));
}

}  // namespace lunette
