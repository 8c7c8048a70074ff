#include "crc32c.h"

#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define LUNETTE_CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__)
#include <arm_acle.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__clang__)
#define LUNETTE_CRC_TARGET __attribute__((target("crc")))
#else
#define LUNETTE_CRC_TARGET __attribute__((target("+crc")))
#endif
#endif

namespace lunette {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // 0x1EDC6F41, bits reversed

// The instruction has a latency of three cycles and a throughput of one: three streams of this many bytes run at once.
constexpr size_t kLongStream = 2048;
constexpr size_t kShortStream = 256;

struct Tables {
  // slices[k][b]: the CRC register after byte b and k zero bytes.
  uint32_t slices[8][256];
  // Effect of kLongStream and kShortStream zero bytes on the register, one table per register byte.
  uint32_t skip_long[4][256];
  uint32_t skip_short[4][256];

  Tables() {
    for (uint32_t byte = 0; byte < 256; byte++) {
      uint32_t crc = byte;
      for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
      slices[0][byte] = crc;
    }
    for (int k = 1; k < 8; k++) {
      for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t before = slices[k - 1][byte];
        slices[k][byte] = (before >> 8) ^ slices[0][before & 0xff];
      }
    }
    MakeSkip(kLongStream, skip_long);
    MakeSkip(kShortStream, skip_short);
  }

  // The register is linear in its bits, so the effect on each of 32 bits gives the effect on any value.
  void MakeSkip(size_t zeros, uint32_t (&skip)[4][256]) {
    uint32_t effect[32];
    for (int bit = 0; bit < 32; bit++) {
      uint32_t crc = uint32_t{1} << bit;
      for (size_t i = 0; i < zeros; i++) crc = (crc >> 8) ^ slices[0][crc & 0xff];
      effect[bit] = crc;
    }
    for (int byte = 0; byte < 4; byte++) {
      for (uint32_t value = 0; value < 256; value++) {
        uint32_t sum = 0;
        for (int bit = 0; bit < 8; bit++) {
          if ((value >> bit & 1) != 0) sum ^= effect[byte * 8 + bit];
        }
        skip[byte][value] = sum;
      }
    }
  }
};

const Tables& GetTables() {
  static const Tables tables;
  return tables;
}

#if defined(LUNETTE_CRC_TARGET)

uint32_t Skip(const uint32_t (&skip)[4][256], uint32_t crc) {
  return skip[0][crc & 0xff] ^ skip[1][crc >> 8 & 0xff] ^ skip[2][crc >> 16 & 0xff] ^ skip[3][crc >> 24];
}

#if defined(__x86_64__)
LUNETTE_CRC_TARGET inline uint32_t Step8(uint32_t crc, uint64_t word) {
  return static_cast<uint32_t>(_mm_crc32_u64(crc, word));
}
LUNETTE_CRC_TARGET inline uint32_t Step1(uint32_t crc, uint8_t byte) { return _mm_crc32_u8(crc, byte); }
bool CpuHasCrc() { return __builtin_cpu_supports("sse4.2"); }
constexpr const char* kCpuName = "sse4.2";
#else
LUNETTE_CRC_TARGET inline uint32_t Step8(uint32_t crc, uint64_t word) { return __crc32cd(crc, word); }
LUNETTE_CRC_TARGET inline uint32_t Step1(uint32_t crc, uint8_t byte) { return __crc32cb(crc, byte); }
#if defined(__linux__)
bool CpuHasCrc() { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#else
bool CpuHasCrc() { return true; }  // Every arm64 Mac has it.
#endif
constexpr const char* kCpuName = "armv8-crc";
#endif

inline uint64_t LoadWord(const uint8_t* at) {
  uint64_t word;
  memcpy(&word, at, sizeof word);
  return word;
}

template <size_t kStream>
LUNETTE_CRC_TARGET const uint8_t* ThreeStreams(uint32_t& crc, const uint8_t* at, const uint8_t* end,
                                               const uint32_t (&skip)[4][256]) {
  while (static_cast<size_t>(end - at) >= 3 * kStream) {
    uint32_t first = crc;
    uint32_t second = 0;
    uint32_t third = 0;
    for (size_t i = 0; i < kStream; i += 8) {
      first = Step8(first, LoadWord(at + i));
      second = Step8(second, LoadWord(at + kStream + i));
      third = Step8(third, LoadWord(at + 2 * kStream + i));
    }
    crc = Skip(skip, Skip(skip, first) ^ second) ^ third;
    at += 3 * kStream;
  }
  return at;
}

LUNETTE_CRC_TARGET uint32_t WithInstructions(uint32_t crc, const uint8_t* bytes, size_t length) {
  const uint8_t* at = bytes;
  const uint8_t* end = bytes + length;
  crc = ~crc;
  if (length >= 3 * kShortStream) {
    const Tables& tables = GetTables();
    at = ThreeStreams<kLongStream>(crc, at, end, tables.skip_long);
    at = ThreeStreams<kShortStream>(crc, at, end, tables.skip_short);
  }
  for (; end - at >= 8; at += 8) crc = Step8(crc, LoadWord(at));
  for (; at < end; at++) crc = Step1(crc, *at);
  return ~crc;
}

#else

bool CpuHasCrc() { return false; }
constexpr const char* kCpuName = "table";
uint32_t WithInstructions(uint32_t crc, const uint8_t* bytes, size_t length) {
  return Crc32cPortable(crc, bytes, length);
}

#endif

const bool kUseInstructions = CpuHasCrc();

}  // namespace

uint32_t Crc32cPortable(uint32_t crc, const uint8_t* bytes, size_t length) {
  const Tables& tables = GetTables();
  const auto& slices = tables.slices;
  const uint8_t* at = bytes;
  const uint8_t* end = bytes + length;
  crc = ~crc;
  for (; end - at >= 8; at += 8) {
    // Assembled byte by byte, so that the order of bytes in the machine's words does not matter.
    uint32_t low = crc ^ (static_cast<uint32_t>(at[0]) | static_cast<uint32_t>(at[1]) << 8 |
                          static_cast<uint32_t>(at[2]) << 16 | static_cast<uint32_t>(at[3]) << 24);
    crc = slices[7][low & 0xff] ^ slices[6][low >> 8 & 0xff] ^ slices[5][low >> 16 & 0xff] ^ slices[4][low >> 24] ^
          slices[3][at[4]] ^ slices[2][at[5]] ^ slices[1][at[6]] ^ slices[0][at[7]];
  }
  for (; at < end; at++) crc = (crc >> 8) ^ slices[0][(crc ^ *at) & 0xff];
  return ~crc;
}

uint32_t Crc32c(uint32_t crc, const uint8_t* bytes, size_t length) {
  return kUseInstructions ? WithInstructions(crc, bytes, length) : Crc32cPortable(crc, bytes, length);
}

const char* Crc32cImplementation() { return kUseInstructions ? kCpuName : "table"; }

}  // namespace lunette
