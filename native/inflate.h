// Deflate streams (RFC 1951, RFC 1950) unpacked with the zlib that is in the process of Node, with one state for each thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunette {

enum class DeflateForm : uint32_t {
  // Bare deflate. Over when the output is full, whatever follows; the end may be missing.
  kRawStart,
  // Bare deflate, all of it.
  kRaw,
  // With zlib's header and checksum, all of it.
  kZlib,
};

// Whether this Node has a zlib that can be called.
bool CanInflate();

// Returns bytes of output, or a negative errno: EBADMSG for what is no such stream, ends too early or holds more than the output.
int64_t Inflate(DeflateForm form, const uint8_t* input, size_t input_length, uint8_t* output, size_t output_length);

}  // namespace lunette
