// What the file system of a directory can do, found by trying it on an unnamed file.
#pragma once

#include <cstdint>

namespace lunette {

constexpr uint32_t kCachedReads = 1;    // RWF_NOWAIT on reads
constexpr uint32_t kNoWaitWrites = 2;   // RWF_NOWAIT on buffered writes
constexpr uint32_t kSeekData = 4;       // SEEK_DATA finds data behind a hole
constexpr uint32_t kPunchesHoles = 8;   // FALLOC_FL_PUNCH_HOLE
constexpr uint32_t kZeroesRanges = 16;  // FALLOC_FL_ZERO_RANGE
constexpr uint32_t kOfdLocks = 32;      // F_OFD_SETLK

// Flags from above, or a negative errno when no file can be made there.
int64_t ProbeDirectory(const char* path);

}  // namespace lunette
