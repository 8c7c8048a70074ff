#include "zero.h"

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lunette {
namespace {

uint64_t LoadWord(const uint8_t* at) {
  uint64_t word;
  memcpy(&word, at, sizeof word);
  return word;
}

// True when the 64 bytes are zeros. Unaligned loads: on the CPUs that matter they cost nothing extra.
bool IsZeroBlock(const uint8_t* at) {
#if defined(__SSE2__)
  const __m128i* lane = reinterpret_cast<const __m128i*>(at);
  __m128i any = _mm_or_si128(_mm_or_si128(_mm_loadu_si128(lane), _mm_loadu_si128(lane + 1)),
                             _mm_or_si128(_mm_loadu_si128(lane + 2), _mm_loadu_si128(lane + 3)));
  return _mm_movemask_epi8(_mm_cmpeq_epi8(any, _mm_setzero_si128())) == 0xffff;
#elif defined(__ARM_NEON) && defined(__aarch64__)
  uint8x16_t any = vorrq_u8(vorrq_u8(vld1q_u8(at), vld1q_u8(at + 16)), vorrq_u8(vld1q_u8(at + 32), vld1q_u8(at + 48)));
  return vmaxvq_u8(any) == 0;
#else
  uint64_t any = 0;
  for (int i = 0; i < 64; i += 8) any |= LoadWord(at + i);
  return any == 0;
#endif
}

}  // namespace

bool IsZero(const uint8_t* bytes, size_t length) {
  const uint8_t* at = bytes;
  const uint8_t* end = bytes + length;
  if (length < 8) {
    for (; at < end; at++) {
      if (*at != 0) return false;
    }
    return true;
  }
  // Data that is not zero usually shows it at once, at either end.
  if (LoadWord(at) != 0 || LoadWord(end - 8) != 0) return false;
  for (; end - at >= 64; at += 64) {
    if (!IsZeroBlock(at)) return false;
  }
  for (; end - at >= 8; at += 8) {
    if (LoadWord(at) != 0) return false;
  }
  return true;  // The rest is in the last word, which was looked at first.
}

}  // namespace lunette
