#include "streams.h"

#include <errno.h>

#include "inflate.h"
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

}  // namespace lunette
