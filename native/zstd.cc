#include "zstd.h"

#include <errno.h>

#include "shared_library.h"

namespace lunette {
namespace {

// Of zstd.h's stable interface, which does not change within libzstd.so.1; its header comes in a package of its own, which builds need not have.
struct InBuffer {
  const void* source;
  size_t size;
  size_t position;
};
struct OutBuffer {
  void* target;
  size_t size;
  size_t position;
};
constexpr unsigned kFirstVersion = 10400;
constexpr int kResetSession = 1;
constexpr int kDecoderWindowLogMax = 100;
constexpr int kEncoderLevel = 100;

// A stream may not ask for a larger window than 32 MiB: a cluster has 2 MiB at most.
constexpr int kMaxWindowLog = 25;
// A state that a stream made larger than this is not kept.
constexpr size_t kLargestKept = 4 * 1024 * 1024;

struct Library {
  unsigned (*version)() = nullptr;
  unsigned (*is_error)(size_t) = nullptr;
  void* (*make_decoder)() = nullptr;
  size_t (*free_decoder)(void*) = nullptr;
  size_t (*reset_decoder)(void*, int) = nullptr;
  size_t (*set_decoder)(void*, int, int) = nullptr;
  size_t (*size_of_decoder)(const void*) = nullptr;
  size_t (*decompress)(void*, OutBuffer*, InBuffer*) = nullptr;
  void* (*make_encoder)() = nullptr;
  size_t (*free_encoder)(void*) = nullptr;
  size_t (*set_encoder)(void*, int, int) = nullptr;
  size_t (*compress)(void*, void*, size_t, const void*, size_t) = nullptr;
  bool usable = false;

  Library() {
    usable = Take(RTLD_DEFAULT);
    if (usable) return;
    void* apart = OpenApart("libzstd.so.1");
    usable = apart != nullptr && Take(apart);
  }

  bool Take(void* from) {
    return FindFunction(from, "ZSTD_versionNumber", &version) && version() >= kFirstVersion &&
           FindFunction(from, "ZSTD_isError", &is_error) && FindFunction(from, "ZSTD_createDCtx", &make_decoder) &&
           FindFunction(from, "ZSTD_freeDCtx", &free_decoder) && FindFunction(from, "ZSTD_DCtx_reset", &reset_decoder) &&
           FindFunction(from, "ZSTD_DCtx_setParameter", &set_decoder) &&
           FindFunction(from, "ZSTD_sizeof_DCtx", &size_of_decoder) &&
           FindFunction(from, "ZSTD_decompressStream", &decompress) &&
           FindFunction(from, "ZSTD_createCCtx", &make_encoder) && FindFunction(from, "ZSTD_freeCCtx", &free_encoder) &&
           FindFunction(from, "ZSTD_CCtx_setParameter", &set_encoder) && FindFunction(from, "ZSTD_compress2", &compress);
  }
};

const Library& TheLibrary() {
  static const Library library;
  return library;
}

class Decoder {
 public:
  ~Decoder() { Drop(); }

  void* Begin() {
    const Library& zstd = TheLibrary();
    if (context_ == nullptr) {
      context_ = zstd.make_decoder();
      if (context_ == nullptr) return nullptr;
      zstd.set_decoder(context_, kDecoderWindowLogMax, kMaxWindowLog);
    }
    zstd.reset_decoder(context_, kResetSession);
    return context_;
  }

  void End() {
    if (TheLibrary().size_of_decoder(context_) > kLargestKept) Drop();
  }

 private:
  void Drop() {
    if (context_ != nullptr) TheLibrary().free_decoder(context_);
    context_ = nullptr;
  }

  void* context_ = nullptr;
};

struct Encoder {
  void* context = nullptr;
  ~Encoder() {
    if (context != nullptr) TheLibrary().free_encoder(context);
  }
};

}  // namespace

bool HasZstd() { return TheLibrary().usable; }

int64_t ZstdUnpack(const uint8_t* input, size_t input_length, uint8_t* output, size_t output_length) {
  if (!HasZstd()) return -ENOSYS;
  const Library& zstd = TheLibrary();
  static thread_local Decoder decoder;
  void* context = decoder.Begin();
  if (context == nullptr) return -ENOMEM;
  InBuffer in = {input, input_length, 0};
  OutBuffer out = {output, output_length, 0};
  int64_t result = 0;
  while (out.position < out.size) {
    const size_t read = in.position;
    const size_t written = out.position;
    if (zstd.is_error(zstd.decompress(context, &out, &in)) != 0) {
      result = -EBADMSG;
      break;
    }
    if (in.position == read && out.position == written) break;
  }
  if (result == 0) result = static_cast<int64_t>(out.position);
  decoder.End();
  return result;
}

int64_t ZstdPack(int level, const uint8_t* input, size_t input_length, uint8_t* output, size_t output_length) {
  if (!HasZstd()) return -ENOSYS;
  const Library& zstd = TheLibrary();
  static thread_local Encoder encoder;
  if (encoder.context == nullptr) encoder.context = zstd.make_encoder();
  if (encoder.context == nullptr) return -ENOMEM;
  zstd.set_encoder(encoder.context, kEncoderLevel, level);
  const size_t done = zstd.compress(encoder.context, output, output_length, input, input_length);
  return zstd.is_error(done) != 0 ? 0 : static_cast<int64_t>(done);
}

}  // namespace lunette
