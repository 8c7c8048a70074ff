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

bool CanPack(StreamForm form);

// How streams are packed: the window is deflate's alone.
struct Packing {
  StreamForm form;
  int level;
  int window_bits;
};

// Packs the units of `input`, of which the last may be shorter: zeros fill it up. The streams come one after the other in `output`, which has
// room for whole units. `lengths` has a number for each: bytes of its stream; `unit` where none is shorter than the unit, which is there as it
// is; -1 for zeros, of which there is nothing. Returns bytes of output or a negative errno.
int64_t Pack(const Packing& packing, size_t unit, const iovec& input, const iovec& output, int32_t* lengths,
             size_t count);

}  // namespace lunette
