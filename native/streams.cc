#include "streams.h"

#include <errno.h>

#include <cstring>
#include <limits>
#include <vector>

#include "deflate.h"
#include "inflate.h"
#include "zero.h"
#include "zstd.h"

namespace lunette {
namespace {

int64_t UnpackOne(StreamForm form, const uint8_t* input, size_t length, const iovec& output) {
  uint8_t* target = static_cast<uint8_t*>(output.iov_base);
  if (form == StreamForm::kZstd) return ZstdUnpack(input, length, target, output.iov_len);
  return Inflate(DeflateForm::kRawStart, input, length, target, output.iov_len);
}

}  // namespace

bool CanUnpack(StreamForm form) { return form == StreamForm::kZstd ? HasZstd() : CanInflate(); }

int64_t Unpack(StreamForm form, const iovec& packed, int32_t* places, const iovec* outputs, size_t count) {
  for (size_t i = 0; i < count; i++) {
    const int64_t at = places[3 * i];
    const int64_t length = places[3 * i + 1];
    if (at < 0 || length < 0 || at + length > static_cast<int64_t>(packed.iov_len)) return -EINVAL;
  }
  for (size_t i = 0; i < count; i++) {
    const uint8_t* input = static_cast<const uint8_t*>(packed.iov_base) + places[3 * i];
    const size_t length = static_cast<size_t>(places[3 * i + 1]);
    places[3 * i + 2] = static_cast<int32_t>(UnpackOne(form, input, length, outputs[i]));
  }
  return 0;
}

bool CanPack(StreamForm form) { return form == StreamForm::kZstd ? HasZstd() : CanDeflate(); }

int64_t Pack(const Packing& packing, size_t unit, const iovec& input, const iovec& output, int32_t* lengths,
             size_t count) {
  constexpr size_t kMost = std::numeric_limits<int32_t>::max();
  if (unit == 0 || unit > kMost || count != (input.iov_len + unit - 1) / unit || output.iov_len / unit < count) {
    return -EINVAL;
  }
  const uint8_t* bytes = static_cast<const uint8_t*>(input.iov_base);
  uint8_t* target = static_cast<uint8_t*>(output.iov_base);
  std::vector<uint8_t> last;
  for (size_t i = 0; i < count; i++) {
    const uint8_t* one = bytes + i * unit;
    const size_t there = input.iov_len - i * unit;
    if (there < unit) {
      last.assign(unit, 0);
      memcpy(last.data(), one, there);
      one = last.data();
    }
    if (IsZero(one, unit)) {
      lengths[i] = -1;
      continue;
    }
    const int64_t done = packing.form == StreamForm::kZstd
                             ? ZstdPack(packing.level, one, unit, target, unit - 1)
                             : Deflate(packing.level, packing.window_bits, one, unit, target, unit - 1);
    if (done < 0) return done;
    if (done == 0) memcpy(target, one, unit);
    lengths[i] = done == 0 ? static_cast<int32_t>(unit) : static_cast<int32_t>(done);
    target += lengths[i];
  }
  return target - static_cast<uint8_t*>(output.iov_base);
}

}  // namespace lunette
