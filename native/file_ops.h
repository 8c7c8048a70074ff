// System calls on open files and block devices. All return what is said, or a negative errno; none throws, none retries but for EINTR.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

namespace lunette {

// Reads until the segments are full or the file ends. Returns bytes read. The segments are used up as it goes.
int64_t ReadAt(int fd, iovec* segments, size_t count, int64_t offset);
// Writes all segments. Returns bytes written: all of them, unless an error follows some bytes; then the errno.
int64_t WriteAt(int fd, iovec* segments, size_t count, int64_t offset);

// Waits until completed writes are durable.
int64_t DataSync(int fd);
int64_t Truncate(int fd, int64_t size);

// Gives a range's blocks back; the range then reads as zeros and the size stays.
int64_t PunchHole(int fd, int64_t offset, int64_t length);
// Makes a range read as zeros and keeps it allocated; a file grows to hold it, a block device does not.
int64_t ZeroRange(int fd, int64_t offset, int64_t length, bool keep_size);
// Allocates a range; bytes in it stay. A file grows to hold it.
int64_t Allocate(int fd, int64_t offset, int64_t length);

// Next data or hole at or after `offset`. -ENXIO past the last data; -EINVAL where the file system cannot tell.
int64_t SeekData(int fd, int64_t offset);
int64_t SeekHole(int fd, int64_t offset);

// Shares a range's blocks (FICLONERANGE). Returns `length`.
int64_t CloneRange(int source, int64_t source_offset, int fd, int64_t offset, int64_t length);
// Copies within the kernel (copy_file_range). Returns bytes copied, fewer than `length` at the source's end, or the errno of the first call.
int64_t CopyRange(int source, int64_t source_offset, int fd, int64_t offset, int64_t length);

// Block devices: size in bytes, logical block size, discard, write zeros.
int64_t DeviceSize(int fd);
int64_t DeviceBlockSize(int fd);
int64_t DeviceDiscard(int fd, int64_t offset, int64_t length);
int64_t DeviceZeroOut(int fd, int64_t offset, int64_t length);

// Swaps what two names lead to, in one step (RENAME_EXCHANGE).
int64_t ExchangeNames(const char* one, const char* other);

// f_type of statfs(2).
int64_t FileSystemType(int fd);

}  // namespace lunette
