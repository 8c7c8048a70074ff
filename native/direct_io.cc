#include "direct_io.h"

#include <errno.h>

#include "file_ops.h"

namespace lunette {
namespace {

#if defined(__linux__) && defined(RWF_NOWAIT)

int64_t ReadCached(int fd, const iovec* segments, size_t count, int64_t offset) {
  ssize_t done = preadv2(fd, segments, static_cast<int>(count), offset, RWF_NOWAIT);
  return done < 0 ? -errno : done;
}

int64_t WriteNoWait(int fd, iovec* segments, size_t count, int64_t offset) {
  ssize_t done = pwritev2(fd, segments, static_cast<int>(count), offset, RWF_NOWAIT);
  if (done < 0) return -errno;
  size_t skip = static_cast<size_t>(done);
  size_t at = 0;
  while (at < count && skip >= segments[at].iov_len) skip -= segments[at++].iov_len;
  if (at == count) return done;
  // Some bytes are in the file already: the caller was promised all or none.
  segments[at].iov_base = static_cast<char*>(segments[at].iov_base) + skip;
  segments[at].iov_len -= skip;
  int64_t rest = WriteAt(fd, segments + at, count - at, offset + done);
  return rest < 0 ? rest : done + rest;
}

#else

int64_t ReadCached(int, const iovec*, size_t, int64_t) { return -EOPNOTSUPP; }
int64_t WriteNoWait(int, iovec*, size_t, int64_t) { return -EOPNOTSUPP; }

#endif

}  // namespace

int64_t TransferNow(DirectMode mode, int fd, iovec* segments, size_t count, int64_t offset) {
  switch (mode) {
    case DirectMode::kReadCached:
      return ReadCached(fd, segments, count, offset);
    case DirectMode::kReadMemory:
      return ReadAt(fd, segments, count, offset);
    case DirectMode::kWriteNoWait:
      return WriteNoWait(fd, segments, count, offset);
    case DirectMode::kWrite:
      return WriteAt(fd, segments, count, offset);
  }
  return -EINVAL;
}

}  // namespace lunette
