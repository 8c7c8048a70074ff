// JavaScript's face of crc32c and zero detection.
#include "crc32c.h"
#include "glue.h"
#include "zero.h"

namespace lunette {
namespace {

// Both are called per request or per cluster: bare N-API, no wrapper objects.
struct Part {
  uint8_t* data;
  size_t length;
  uint32_t seed;
};

bool ReadPart(napi_env env, napi_callback_info info, size_t wanted, Part* part) {
  napi_value arguments[4];
  size_t count = 4;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok || count < wanted) {
    napi_throw_type_error(env, nullptr, "memory, offset and length are needed");
    return false;
  }
  napi_typedarray_type type;
  size_t size = 0;
  void* data = nullptr;
  double offset = -1;
  double length = -1;
  if (napi_get_typedarray_info(env, arguments[0], &type, &size, &data, nullptr, nullptr) != napi_ok ||
      type != napi_uint8_array) {
    napi_throw_type_error(env, nullptr, "memory must be a Uint8Array");
    return false;
  }
  napi_get_value_double(env, arguments[1], &offset);
  napi_get_value_double(env, arguments[2], &length);
  if (!(offset >= 0 && length >= 0 && offset + length <= static_cast<double>(size))) {
    napi_throw_range_error(env, nullptr, "the range is not inside the memory");
    return false;
  }
  part->data = static_cast<uint8_t*>(data) + static_cast<size_t>(offset);
  part->length = static_cast<size_t>(length);
  if (wanted > 3) napi_get_value_uint32(env, arguments[3], &part->seed);
  return true;
}

// isZero(memory, offset, length): boolean
napi_value IsZeroFace(napi_env env, napi_callback_info info) {
  Part part{};
  if (!ReadPart(env, info, 3, &part)) return nullptr;
  napi_value result = nullptr;
  napi_get_boolean(env, IsZero(part.data, part.length), &result);
  return result;
}

// crc32c(memory, offset, length, crc): number
template <uint32_t (*kFunction)(uint32_t, const uint8_t*, size_t)>
napi_value Crc32cFace(napi_env env, napi_callback_info info) {
  Part part{};
  if (!ReadPart(env, info, 4, &part)) return nullptr;
  napi_value result = nullptr;
  napi_create_uint32(env, kFunction(part.seed, part.data, part.length), &result);
  return result;
}

void Define(Napi::Env env, Napi::Object exports, const char* name, napi_callback callback) {
  napi_value function = nullptr;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function);
  exports.Set(name, function);
}

}  // namespace

void RegisterBytes(Napi::Env env, Napi::Object exports) {
  Define(env, exports, "isZero", IsZeroFace);
  Define(env, exports, "crc32c", Crc32cFace<Crc32c>);
  Define(env, exports, "crc32cPortable", Crc32cFace<Crc32cPortable>);
  exports.Set("crc32cImplementation", Napi::String::New(env, Crc32cImplementation()));
}

}  // namespace lunette
