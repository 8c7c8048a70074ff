// JavaScript's face of what runs on the event loop: transfers that do not wait, and facts about open files.
#include <errno.h>
#include <time.h>

#include <vector>

#include "direct_io.h"
#include "file_ops.h"
#include "glue.h"
#include "probe.h"

namespace lunette {
namespace {

// The call block that `transfer` reads its arguments from and leaves its results in: crossing the border with words in shared memory
// costs less than with arguments. Words are doubles: every offset and address in use is exact in one.
constexpr size_t kMode = 0;    // in: DirectMode; out: result, a negative errno or bytes moved
constexpr size_t kFd = 1;      // in; out: microseconds taken by a write
constexpr size_t kOffset = 2;  // in
constexpr size_t kCount = 3;   // in: segments
constexpr size_t kSegments = 4;  // in: address and length of each
constexpr size_t kMaxSegments = 256;

// One per environment (a worker thread has its own).
struct Transfer {
  double* words;
  iovec segments[kMaxSegments];
};

double NowUs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

// transfer(): void. Met per request: takes no arguments and gives nothing back but words.
napi_value TransferFace(napi_env env, napi_callback_info info) {
  void* data = nullptr;
  napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data);
  Transfer* transfer = static_cast<Transfer*>(data);
  double* words = transfer->words;
  size_t count = static_cast<size_t>(words[kCount]);
  if (count > kMaxSegments) {
    words[kMode] = -EINVAL;
    return nullptr;
  }
  for (size_t i = 0; i < count; i++) {
    transfer->segments[i].iov_base = reinterpret_cast<void*>(static_cast<uintptr_t>(words[kSegments + 2 * i]));
    transfer->segments[i].iov_len = static_cast<size_t>(words[kSegments + 2 * i + 1]);
  }
  DirectMode mode = static_cast<DirectMode>(static_cast<uint32_t>(words[kMode]));
  bool timed = mode == DirectMode::kWrite || mode == DirectMode::kWriteNoWait;
  double start = timed ? NowUs() : 0;
  int64_t result = TransferNow(mode, static_cast<int>(words[kFd]), transfer->segments, count,
                               static_cast<int64_t>(words[kOffset]));
  if (timed) words[kFd] = NowUs() - start;
  words[kMode] = static_cast<double>(result);
  return nullptr;
}

// addressOf(memory: Uint8Array): number. Valid as long as the memory is neither collected nor transferred away.
napi_value AddressOfFace(napi_env env, napi_callback_info info) {
  napi_value argument;
  size_t count = 1;
  void* data = nullptr;
  napi_typedarray_type type;
  if (napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr) != napi_ok || count < 1 ||
      napi_get_typedarray_info(env, argument, &type, nullptr, &data, nullptr, nullptr) != napi_ok) {
    napi_throw_type_error(env, nullptr, "memory must be a typed array");
    return nullptr;
  }
  napi_value result = nullptr;
  napi_create_double(env, static_cast<double>(reinterpret_cast<uintptr_t>(data)), &result);
  return result;
}

Napi::Value FileSystemTypeFace(const Napi::CallbackInfo& info) {
  return NumberOrThrow(info.Env(), FileSystemType(GetFd(info, 0)), "fstatfs");
}

Napi::Value DeviceSizeFace(const Napi::CallbackInfo& info) {
  return NumberOrThrow(info.Env(), DeviceSize(GetFd(info, 0)), "ioctl");
}

Napi::Value DeviceBlockSizeFace(const Napi::CallbackInfo& info) {
  return NumberOrThrow(info.Env(), DeviceBlockSize(GetFd(info, 0)), "ioctl");
}

// exchangeNames(one: string, other: string): 0 or a negative errno
Napi::Value ExchangeNamesFace(const Napi::CallbackInfo& info) {
  std::string one = info[0].ToString();
  std::string other = info[1].ToString();
  return Napi::Number::New(info.Env(), static_cast<double>(ExchangeNames(one.c_str(), other.c_str())));
}

Napi::Value ProbeDirectoryFace(const Napi::CallbackInfo& info) {
  std::string path = info[0].ToString();
  return NumberOrThrow(info.Env(), ProbeDirectory(path.c_str()), "open");
}

}  // namespace

void RegisterFiles(Napi::Env env, Napi::Object exports) {
  Napi::Float64Array words = Napi::Float64Array::New(env, kSegments + 2 * kMaxSegments);
  Transfer* transfer = new Transfer();
  transfer->words = words.Data();
  // The function and the words live as long as each other: the exports object keeps both, and the environment outlives it.
  exports.Set("transferWords", words);
  napi_value function = nullptr;
  napi_create_function(env, "transfer", NAPI_AUTO_LENGTH, TransferFace, transfer, &function);
  Napi::Reference<Napi::Float64Array>* keep =
      new Napi::Reference<Napi::Float64Array>(Napi::Persistent(words));
  keep->SuppressDestruct();
  env.AddCleanupHook(
      [keep](Transfer* block) {
        delete keep;
        delete block;
      },
      transfer);
  exports.Set("transfer", function);
  napi_create_function(env, "addressOf", NAPI_AUTO_LENGTH, AddressOfFace, nullptr, &function);
  exports.Set("addressOf", function);
  exports.Set("fileSystemType", Napi::Function::New<FileSystemTypeFace>(env, "fileSystemType"));
  exports.Set("deviceSize", Napi::Function::New<DeviceSizeFace>(env, "deviceSize"));
  exports.Set("deviceBlockSize", Napi::Function::New<DeviceBlockSizeFace>(env, "deviceBlockSize"));
  exports.Set("exchangeNames", Napi::Function::New<ExchangeNamesFace>(env, "exchangeNames"));
  exports.Set("probeDirectory", Napi::Function::New<ProbeDirectoryFace>(env, "probeDirectory"));

  Napi::Object probe = Napi::Object::New(env);
  probe.Set("cachedReads", kCachedReads);
  probe.Set("noWaitWrites", kNoWaitWrites);
  probe.Set("seekData", kSeekData);
  probe.Set("punchesHoles", kPunchesHoles);
  probe.Set("zeroesRanges", kZeroesRanges);
  probe.Set("ofdLocks", kOfdLocks);
  exports.Set("probeFlags", probe);
}

}  // namespace lunette
