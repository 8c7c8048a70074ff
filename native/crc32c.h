// CRC32C (Castagnoli, polynomial 0x1EDC6F41, reflected), as iSCSI's digests use it: RFC 3720, section 12.1.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunette {

// Continues a CRC: `crc` is the result for the bytes before, 0 at the start.
uint32_t Crc32c(uint32_t crc, const uint8_t* bytes, size_t length);

// What the CPU offers: "sse4.2", "armv8-crc" or "table".
const char* Crc32cImplementation();

// The implementation by name, so that tests reach the portable one on every machine.
uint32_t Crc32cPortable(uint32_t crc, const uint8_t* bytes, size_t length);

}  // namespace lunette
