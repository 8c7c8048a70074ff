#include "inflate.h"

#include <dlfcn.h>
#include <errno.h>
#include <zlib.h>

#include <limits>

namespace lunette {
namespace {

// Asked for by name: a Node that keeps its zlib to itself is one without this, not one that cannot load the addon.
struct Zlib {
  decltype(&::inflateInit2_) init = nullptr;
  decltype(&::inflateReset2) reset = nullptr;
  decltype(&::inflate) run = nullptr;
  decltype(&::inflateEnd) end = nullptr;
  bool usable = false;

  Zlib() {
    Find("inflateInit2_", &init);
    Find("inflateReset2", &reset);
    Find("inflate", &run);
    Find("inflateEnd", &end);
    decltype(&::zlibVersion) version = nullptr;
    Find("zlibVersion", &version);
    // As inflateInit2_ itself judges whether its structures are ours.
    usable = init != nullptr && reset != nullptr && run != nullptr && end != nullptr && version != nullptr &&
             version()[0] == ZLIB_VERSION[0];
  }

  template <typename Function>
  static void Find(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  }
};

const Zlib& TheZlib() {
  static const Zlib zlib;
  return zlib;
}

// Window and tables, some 40 KiB: made at a thread's first stream, used again by all later ones.
class Inflater {
 public:
  ~Inflater() {
    if (made_) TheZlib().end(&stream_);
  }

  z_stream* Begin(int window_bits) {
    const Zlib& zlib = TheZlib();
    if (!made_) {
      stream_ = z_stream();
      made_ = zlib.init(&stream_, window_bits, ZLIB_VERSION, static_cast<int>(sizeof(z_stream))) == Z_OK;
      return made_ ? &stream_ : nullptr;
    }
    return zlib.reset(&stream_, window_bits) == Z_OK ? &stream_ : nullptr;
  }

 private:
  z_stream stream_;
  bool made_ = false;
};

}  // namespace

bool CanInflate() { return TheZlib().usable; }

int64_t Inflate(DeflateForm form, const uint8_t* input, size_t input_length, uint8_t* output, size_t output_length) {
  if (!CanInflate()) return -ENOSYS;
  constexpr size_t kMost = std::numeric_limits<uInt>::max();
  if (input_length > kMost || output_length > kMost) return -EINVAL;
  static thread_local Inflater inflater;
  z_stream* stream = inflater.Begin(form == DeflateForm::kZlib ? MAX_WBITS : -MAX_WBITS);
  if (stream == nullptr) return -ENOMEM;
  stream->next_in = const_cast<Bytef*>(input);
  stream->avail_in = static_cast<uInt>(input_length);
  stream->next_out = output;
  stream->avail_out = static_cast<uInt>(output_length);
  int result = TheZlib().run(stream, Z_SYNC_FLUSH);
  int64_t done = static_cast<int64_t>(output_length - stream->avail_out);
  if (result == Z_MEM_ERROR) return -ENOMEM;
  if (result == Z_STREAM_END) return done;
  if (form != DeflateForm::kRawStart) return -EBADMSG;
  if (stream->avail_out == 0) return done;
  // Z_BUF_ERROR: nothing at all could be done, as with no input.
  return result == Z_OK || result == Z_BUF_ERROR ? done : -EBADMSG;
}

}  // namespace lunette
