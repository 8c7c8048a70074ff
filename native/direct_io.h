// Reads and writes on the calling thread, for the event loop: they must not wait.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

namespace lunette {

enum class DirectMode : uint32_t {
  // preadv2 with RWF_NOWAIT: what is in the page cache, and no more.
  kReadCached = 0,
  // Plain preadv: for file systems that are memory (tmpfs, ramfs).
  kReadMemory = 1,
  // pwritev2 with RWF_NOWAIT; the rest of a write that stopped half-way is written plainly.
  kWriteNoWait = 2,
  // Plain pwritev.
  kWrite = 3,
};

// Returns bytes moved or a negative errno; -EOPNOTSUPP where the platform or file system has no such mode. Reads may be short.
int64_t TransferNow(DirectMode mode, int fd, iovec* segments, size_t count, int64_t offset);

}  // namespace lunette
