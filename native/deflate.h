// Bare deflate streams (RFC 1951) packed with the system's zlib, else with Node's, with one state for each thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunette {

// Whether there is a zlib that can be called. Looks for it when it is first asked.
bool CanDeflate();

// Packs into one stream. Returns its bytes; 0 where it does not fit; or a negative errno.
int64_t Deflate(int level, int window_bits, const uint8_t* input, size_t input_length, uint8_t* output,
                size_t output_length);

}  // namespace lunette
