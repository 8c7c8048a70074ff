// Moving data between files on one thread, through a buffer that stays in this core's cache: handing buffers from thread to thread costs
// more than copying them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunette {

// Copies a range between files by reading and writing. With `unit` above 0, units of zeros, counted from the range's start, are not written: the target reads as
// zeros there. Returns bytes dealt with, fewer than `length` at the source's end, or a negative errno.
int64_t CopyData(int source, int64_t source_offset, int fd, int64_t offset, int64_t length, int64_t unit);

// Copies a range between files within the kernel (copy_file_range), and what that cannot do as CopyData. For file systems that have a way of their
// own, such as a server that copies: elsewhere the kernel copies page by page while it keeps all others from writing to the target.
int64_t CopyByKernel(int source, int64_t source_offset, int fd, int64_t offset, int64_t length);

// Sets out[i] to 1 where unit number i of a range is zeros, else to 0; what lies behind the end of the file is zeros. Reads no more of a unit
// than it must. Returns 0 or a negative errno; -EINVAL when `out` has no room for a byte per unit.
int64_t FindZeros(int fd, int64_t offset, int64_t length, int64_t unit, uint8_t* out, size_t room);

// Compares a range of a file with one of another file, or with zeros (`other` -1); what lies behind the end of a file is zeros. Returns how many
// bytes from the start are equal, or a negative errno.
int64_t CompareData(int fd, int64_t offset, int other, int64_t other_offset, int64_t length);

}  // namespace lunette
