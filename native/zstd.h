// Zstandard frames (RFC 8878) with the libzstd of the process or of the system, found when it is first needed, with one state for each thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunette {

// Whether there is one that can be called.
bool HasZstd();

// Unpacks frames until the output is full, whatever follows, or the input ends. Returns bytes of output, or a negative errno: EBADMSG for what
// is no such stream.
int64_t ZstdUnpack(const uint8_t* input, size_t input_length, uint8_t* output, size_t output_length);

// Packs into one frame. Returns its bytes; 0 where it does not fit; or a negative errno.
int64_t ZstdPack(int level, const uint8_t* input, size_t input_length, uint8_t* output, size_t output_length);

}  // namespace lunette
