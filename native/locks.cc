#include "locks.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

namespace lunette {
namespace {

#if defined(F_OFD_SETLK) && defined(F_OFD_GETLK)

int64_t Control(int fd, int command, short type, int64_t offset, int64_t length, struct flock* range) {
  *range = {};
  range->l_type = type;
  range->l_whence = SEEK_SET;
  range->l_start = offset;
  range->l_len = length;
  range->l_pid = 0;  // The kernel insists on it for these commands.
  int result;
  do {
    result = fcntl(fd, command, range);
  } while (result < 0 && errno == EINTR);
  if (result == 0) return 0;
  return errno == EACCES ? -EAGAIN : -errno;
}

#endif

}  // namespace

#if defined(F_OFD_SETLK) && defined(F_OFD_GETLK)

int64_t LockRange(int fd, int64_t offset, int64_t length) {
  struct flock range;
  return Control(fd, F_OFD_SETLK, F_RDLCK, offset, length, &range);
}

int64_t UnlockRange(int fd, int64_t offset, int64_t length) {
  struct flock range;
  return Control(fd, F_OFD_SETLK, F_UNLCK, offset, length, &range);
}

int64_t TestRange(int fd, int64_t offset, int64_t length) {
  struct flock range;
  int64_t result = Control(fd, F_OFD_GETLK, F_WRLCK, offset, length, &range);
  if (result < 0) return result;
  if (range.l_type == F_UNLCK) return 0;
  return range.l_pid > 0 ? 1 + static_cast<int64_t>(range.l_pid) : 1;
}

#else

int64_t LockRange(int, int64_t, int64_t) { return -EOPNOTSUPP; }
int64_t UnlockRange(int, int64_t, int64_t) { return -EOPNOTSUPP; }
int64_t TestRange(int, int64_t, int64_t) { return -EOPNOTSUPP; }

#endif

}  // namespace lunette
