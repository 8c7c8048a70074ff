// The addon: one register function per subject, and what all faces share.
#include <napi.h>
#include <uv.h>

#include <string>

#include "glue.h"

namespace lunette {

Bytes GetBytes(Napi::Env env, Napi::Value value) {
  if (value.IsTypedArray()) {
    void* data = nullptr;
    size_t length = 0;
    napi_typedarray_type type;
    napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr);
    return {static_cast<uint8_t*>(data), value.As<Napi::TypedArray>().ByteLength()};
  }
  if (value.IsDataView()) {
    void* data = nullptr;
    size_t length = 0;
    napi_get_dataview_info(env, value, &length, &data, nullptr, nullptr);
    return {static_cast<uint8_t*>(data), length};
  }
  throw Napi::TypeError::New(env, "a typed array or DataView is needed");
}

Bytes GetPart(const Napi::CallbackInfo& info, size_t first_argument) {
  Bytes all = GetBytes(info.Env(), info[first_argument]);
  double offset = info[first_argument + 1].ToNumber().DoubleValue();
  double length = info[first_argument + 2].ToNumber().DoubleValue();
  if (!(offset >= 0 && length >= 0 && offset + length <= static_cast<double>(all.length))) {
    throw Napi::RangeError::New(info.Env(), "the range is not inside the memory");
  }
  return {all.data + static_cast<size_t>(offset), static_cast<size_t>(length)};
}

int GetFd(const Napi::CallbackInfo& info, size_t argument) {
  if (!info[argument].IsNumber()) throw Napi::TypeError::New(info.Env(), "a file descriptor is needed");
  return info[argument].As<Napi::Number>().Int32Value();
}

Napi::Value NumberOrThrow(Napi::Env env, int64_t result, const char* syscall) {
  if (result >= 0) return Napi::Number::New(env, static_cast<double>(result));
  int number = static_cast<int>(result);
  std::string name = uv_err_name(number);
  Napi::Error error = Napi::Error::New(env, name + ": " + uv_strerror(number) + ", " + syscall);
  error.Set("code", Napi::String::New(env, name));
  error.Set("errno", Napi::Number::New(env, number));
  error.Set("syscall", Napi::String::New(env, syscall));
  throw error;
}

}  // namespace lunette

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  lunette::RegisterBytes(env, exports);
  lunette::RegisterFiles(env, exports);
  lunette::RegisterIoQueue(env, exports);
  lunette::RegisterStream(env, exports);
  lunette::RegisterSystem(env, exports);
#if defined(__linux__)
  lunette::RegisterUio(env, exports);
  lunette::RegisterNetlink(env, exports);
#endif
  return exports;
}

NODE_API_MODULE(lunette, Init)
