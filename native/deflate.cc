#include "deflate.h"

#include <errno.h>
#include <zlib.h>

#include <limits>

#include "shared_library.h"

namespace lunette {
namespace {

constexpr int kMemoryLevel = 8;

struct Zlib {
  decltype(&::deflateInit2_) init = nullptr;
  decltype(&::deflateReset) reset = nullptr;
  decltype(&::deflate) run = nullptr;
  decltype(&::deflateEnd) end = nullptr;
  bool usable = false;

  Zlib() {
    // Node's finds no matches of three bytes: in windows of 4 KiB its streams are 4 % longer, though it needs half the time.
    void* apart = OpenApart("libz.so.1");
    usable = (apart != nullptr && Take(apart)) || Take(RTLD_DEFAULT);
  }

  bool Take(void* from) {
    decltype(&::zlibVersion) version = nullptr;
    return FindFunction(from, "deflateInit2_", &init) && FindFunction(from, "deflateReset", &reset) &&
           FindFunction(from, "deflate", &run) && FindFunction(from, "deflateEnd", &end) &&
           FindFunction(from, "zlibVersion", &version) && version()[0] == ZLIB_VERSION[0];
  }
};

const Zlib& TheZlib() {
  static const Zlib zlib;
  return zlib;
}

// Window and tables, some 200 KiB: made at a thread's first stream, used again by all later ones of the same kind.
class Deflater {
 public:
  ~Deflater() { Drop(); }

  z_stream* Begin(int level, int window_bits) {
    const Zlib& zlib = TheZlib();
    if (made_ && level == level_ && window_bits == window_bits_) {
      return zlib.reset(&stream_) == Z_OK ? &stream_ : nullptr;
    }
    Drop();
    stream_ = z_stream();
    made_ = zlib.init(&stream_, level, Z_DEFLATED, -window_bits, kMemoryLevel, Z_DEFAULT_STRATEGY, ZLIB_VERSION,
                      static_cast<int>(sizeof(z_stream))) == Z_OK;
    level_ = level;
    window_bits_ = window_bits;
    return made_ ? &stream_ : nullptr;
  }

 private:
  void Drop() {
    if (made_) TheZlib().end(&stream_);
    made_ = false;
  }

  z_stream stream_;
  bool made_ = false;
  int level_ = 0;
  int window_bits_ = 0;
};

}  // namespace

bool CanDeflate() { return TheZlib().usable; }

int64_t Deflate(int level, int window_bits, const uint8_t* input, size_t input_length, uint8_t* output,
                size_t output_length) {
  if (!CanDeflate()) return -ENOSYS;
  constexpr size_t kMost = std::numeric_limits<uInt>::max();
  if (input_length > kMost || output_length > kMost) return -EINVAL;
  static thread_local Deflater deflater;
  z_stream* stream = deflater.Begin(level, window_bits);
  if (stream == nullptr) return -ENOMEM;
  stream->next_in = const_cast<Bytef*>(input);
  stream->avail_in = static_cast<uInt>(input_length);
  stream->next_out = output;
  stream->avail_out = static_cast<uInt>(output_length);
  const int result = TheZlib().run(stream, Z_FINISH);
  if (result == Z_STREAM_END) return static_cast<int64_t>(output_length - stream->avail_out);
  return result == Z_OK || result == Z_BUF_ERROR ? 0 : -EIO;
}

}  // namespace lunette
