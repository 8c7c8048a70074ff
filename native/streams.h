// Many small streams in one go: what a read or write of a compressed image takes, without a step in JavaScript for each.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

namespace lunette {

enum class StreamForm : uint32_t {
  // Bare deflate (RFC 1951).
  kDeflate,
  // Zstandard.
  kZstd,
};

bool CanUnpack(StreamForm form);

// Unpacks streams that lie in `packed`, each into an output of its own; it is over when that is full, whatever follows.
//
// `places` has three numbers for each output: where its stream begins, how many bytes it has at most, and, filled in, how many bytes of output
// came of it, or a negative errno. Returns 0, or -EINVAL when a place is outside of `packed`.
int64_t Unpack(StreamForm form, const iovec& packed, int32_t* places, const iovec* outputs, size_t count);

}  // namespace lunette
