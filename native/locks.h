// Open-file-description locks on byte ranges: they belong to the open file, not to the process.
#pragma once

#include <cstdint>

namespace lunette {

// Takes a read lock without waiting. 0, or a negative errno: -EAGAIN when a write lock is in the way.
int64_t LockRange(int fd, int64_t offset, int64_t length);
int64_t UnlockRange(int fd, int64_t offset, int64_t length);
// Whether a write lock could be had: 0 yes; 1 no, an open file description holds one; 1 + pid no, that process holds a POSIX lock.
int64_t TestRange(int fd, int64_t offset, int64_t length);

}  // namespace lunette
