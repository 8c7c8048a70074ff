#include "transfer.h"

#include <errno.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "file_ops.h"
#include "zero.h"

namespace lunette {
namespace {

// About a core's second-level cache: a smaller one costs calls, a larger one leaves the cache.
constexpr size_t kBuffer = 512 * 1024;
// Larger units than this are looked at from their start, piece by piece: data nearly always shows in the first.
constexpr int64_t kSmallUnit = 16 * 1024;
constexpr size_t kFirstLook = 4096;

struct Free {
  void operator()(void* memory) const { free(memory); }
};

// One for each thread, as large as was ever needed.
uint8_t* Buffer(size_t size) {
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t has = 0;
  if (has < size) {
    void* larger = nullptr;
    if (posix_memalign(&larger, 4096, size) != 0) return nullptr;
    memory.reset(larger);
    has = size;
  }
  return static_cast<uint8_t*>(memory.get());
}

int64_t Read(int fd, uint8_t* to, size_t length, int64_t offset) {
  iovec segment{to, length};
  return ReadAt(fd, &segment, 1, offset);
}

int64_t Write(int fd, uint8_t* from, size_t length, int64_t offset) {
  iovec segment{from, length};
  return WriteAt(fd, &segment, 1, offset);
}

// Reads; what lies behind the end of the file is zeros.
int64_t ReadFilled(int fd, uint8_t* to, size_t length, int64_t offset) {
  int64_t done = Read(fd, to, length, offset);
  if (done >= 0 && static_cast<size_t>(done) < length) memset(to + done, 0, length - static_cast<size_t>(done));
  return done;
}

// Whether the kernel cannot copy between these files, which says nothing against reading and writing them.
bool CannotCopy(int64_t error) {
  return error == -EXDEV || error == -EINVAL || error == -EOPNOTSUPP || error == -ENOSYS || error == -EPERM ||
         error == -EBADF || error == -ETXTBSY;
}

// Writes the parts of a buffer that are not zeros.
int64_t WriteData(int fd, uint8_t* bytes, size_t length, int64_t offset, size_t unit) {
  for (size_t at = 0; at < length;) {
    size_t end = at;
    while (end < length && !IsZero(bytes + end, std::min(unit, length - end))) end += std::min(unit, length - end);
    if (end > at) {
      int64_t done = Write(fd, bytes + at, end - at, offset + static_cast<int64_t>(at));
      if (done < 0) return done;
    }
    at = end;
    if (at < length) at += std::min(unit, length - at);  // the zeros that ended the run
  }
  return 0;
}

// Whether a unit is zeros: 1, 0 or a negative errno.
int64_t UnitIsZero(int fd, int64_t offset, int64_t length, uint8_t* buffer) {
  size_t look = kFirstLook;
  for (int64_t at = 0; at < length;) {
    size_t take = static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(look), length - at));
    int64_t done = Read(fd, buffer, take, offset + at);
    if (done < 0) return done;
    if (!IsZero(buffer, static_cast<size_t>(done))) return 0;
    if (static_cast<size_t>(done) < take) return 1;
    at += done;
    look = std::min(kBuffer, look * 4);
  }
  return 1;
}

}  // namespace

int64_t CopyByKernel(int source, int64_t source_offset, int fd, int64_t offset, int64_t length) {
  int64_t done = CopyRange(source, source_offset, fd, offset, length);
  if (done == length || (done < 0 && !CannotCopy(done))) return done;
  int64_t total = std::max<int64_t>(done, 0);
  int64_t rest = CopyData(source, source_offset + total, fd, offset + total, length - total, 0);
  return rest < 0 ? rest : total + rest;
}

int64_t CopyData(int source, int64_t source_offset, int fd, int64_t offset, int64_t length, int64_t unit) {
  int64_t total = 0;
  size_t step = unit <= 0 ? kBuffer : static_cast<size_t>(unit);
  if (step < kBuffer) step = kBuffer / step * step;
  uint8_t* buffer = Buffer(step);
  if (buffer == nullptr) return -ENOMEM;
  while (total < length) {
    size_t take = static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(step), length - total));
    int64_t done = Read(source, buffer, take, source_offset + total);
    if (done <= 0) return done < 0 ? done : total;
    size_t got = static_cast<size_t>(done);
    int64_t result = unit <= 0 ? Write(fd, buffer, got, offset + total)
                               : WriteData(fd, buffer, got, offset + total, static_cast<size_t>(unit));
    if (result < 0) return result;
    total += done;
    if (got < take) break;
  }
  return total;
}

int64_t FindZeros(int fd, int64_t offset, int64_t length, int64_t unit, uint8_t* out, size_t room) {
  if (unit <= 0 || length < 0 || static_cast<uint64_t>((length + unit - 1) / unit) > room) return -EINVAL;
  uint8_t* buffer = Buffer(kBuffer);
  if (buffer == nullptr) return -ENOMEM;
  if (unit > kSmallUnit) {
    for (int64_t at = 0; at < length; at += unit) {
      int64_t zero = UnitIsZero(fd, offset + at, std::min(unit, length - at), buffer);
      if (zero < 0) return zero;
      *out++ = static_cast<uint8_t>(zero);
    }
    return 0;
  }
  int64_t step = static_cast<int64_t>(kBuffer) / unit * unit;
  for (int64_t at = 0; at < length; at += step) {
    size_t take = static_cast<size_t>(std::min(step, length - at));
    int64_t done = Read(fd, buffer, take, offset + at);
    if (done < 0) return done;
    for (size_t i = 0; i < take; i += static_cast<size_t>(unit)) {
      size_t got = static_cast<size_t>(done);
      size_t end = std::min(got, i + static_cast<size_t>(unit));
      *out++ = end <= i || IsZero(buffer + i, end - i) ? 1 : 0;
    }
  }
  return 0;
}

int64_t CompareData(int fd, int64_t offset, int other, int64_t other_offset, int64_t length) {
  uint8_t* one = Buffer(kBuffer);
  if (one == nullptr) return -ENOMEM;
  constexpr size_t kHalf = kBuffer / 2;
  uint8_t* two = one + kHalf;
  for (int64_t at = 0; at < length;) {
    size_t take = static_cast<size_t>(std::min<int64_t>(kHalf, length - at));
    int64_t result = ReadFilled(fd, one, take, offset + at);
    if (result < 0) return result;
    if (other < 0) {
      if (!IsZero(one, take)) return at + (std::find_if(one, one + take, [](uint8_t byte) { return byte != 0; }) - one);
    } else {
      result = ReadFilled(other, two, take, other_offset + at);
      if (result < 0) return result;
      if (memcmp(one, two, take) != 0) return at + (std::mismatch(one, one + take, two).first - one);
    }
    at += static_cast<int64_t>(take);
  }
  return length;
}

}  // namespace lunette
