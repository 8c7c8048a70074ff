// JavaScript's face of a UIO device: batches of commands out as words, completions in as words, one call for each.
#include <uv.h>

#include <memory>

#include "glue.h"
#include "uio_device.h"

namespace lunette {
namespace {

// What the callback's first argument says. The second is the number of records, or nothing.
constexpr uint32_t kBatch = 0;
constexpr uint32_t kWasReset = 1;
constexpr uint32_t kBroken = 2;
constexpr uint32_t kGone = 3;

// Full batches that one wakeup hands out before the loop turns to others.
constexpr int kBatchesPerTurn = 4;

class UioFace {
 public:
  UioFace(Napi::Env env, std::unique_ptr<UioDevice> device, Napi::Uint32Array batch, Napi::Function callback)
      : env_(env), device_(std::move(device)), batch_(batch.Data()), capacity_(batch.ElementLength()) {
    keep_batch_ = Napi::Persistent(batch);
    callback_ = Napi::Persistent(callback);
    napi_value name = Napi::String::New(env, "lunette.uio");
    napi_async_init(env, nullptr, name, &async_context_);
    uv_loop_t* loop = nullptr;
    napi_get_uv_event_loop(env, &loop);
    // Fails for what cannot be waited for, as a descriptor that is a file.
    error_ = uv_poll_init(loop, &poll_, device_->event_fd());
    if (error_ != 0) {
      // No handle was made, so none is to be closed.
      closed_ = true;
      Release();
      return;
    }
    Napi::ArrayBuffer memory = Napi::ArrayBuffer::New(env, device_->memory(), device_->size());
    memory_ = Napi::Persistent(memory);
    poll_.data = this;
    // Goes on with a full ring after the loop has looked at everything else.
    uv_async_init(loop, &again_, [](uv_async_t* handle) { static_cast<UioFace*>(handle->data)->Drain(); });
    again_.data = this;
    uv_unref(reinterpret_cast<uv_handle_t*>(&again_));
    open_handles_ = 2;
    napi_add_async_cleanup_hook(env, CleanUp, this, &hook_);
  }

  int error() const { return error_; }
  Napi::ArrayBuffer memory() const { return memory_.Value(); }
  bool closed() const { return closed_; }
  uint32_t flags() const { return device_->flags(); }
  const char* reason() const { return device_->reason(); }

  // Events from before the device was opened are not signalled: the ring is looked at once.
  int Start() {
    int result = uv_poll_start(&poll_, UV_READABLE, [](uv_poll_t* handle, int, int) {
      static_cast<UioFace*>(handle->data)->OnReadable();
    });
    if (result == 0) {
      polling_ = true;
      uv_async_send(&again_);
    }
    return result;
  }

  // Fetching ends; completions can still be given.
  void Stop() {
    if (closed_ || !polling_) return;
    polling_ = false;
    uv_poll_stop(&poll_);
  }

  RingState Complete(const uint32_t* words, size_t count) { return device_->Complete(words, count); }
  int Kick() { return device_->Kick(); }
  void Restart() { device_->Restart(); }

  // Takes the memory away from JavaScript and unmaps it. Nothing native may use it any more.
  void Close() {
    if (closed_) return;
    closed_ = true;
    napi_detach_arraybuffer(env_, memory_.Value());
    memory_.Reset();
    Release();
    auto closed = [](uv_handle_t* handle) {
      UioFace* face = static_cast<UioFace*>(handle->data);
      if (--face->open_handles_ > 0) return;
      napi_remove_async_cleanup_hook(face->hook_);
      face->DeleteWhenUnused();
    };
    uv_close(reinterpret_cast<uv_handle_t*>(&poll_), closed);
    uv_close(reinterpret_cast<uv_handle_t*>(&again_), closed);
  }

  // The external that JavaScript holds was collected: nobody can call any more.
  void Forget() {
    forgotten_ = true;
    Close();
    DeleteWhenUnused();
  }

 private:
  static void CleanUp(napi_async_cleanup_hook_handle, void* data) {
    UioFace* face = static_cast<UioFace*>(data);
    Napi::HandleScope scope(face->env_);
    face->Close();
  }

  void Release() {
    device_.reset();
    callback_.Reset();
    keep_batch_.Reset();
    napi_async_destroy(env_, async_context_);
  }

  void DeleteWhenUnused() {
    if (open_handles_ == 0 && forgotten_) delete this;
  }

  void OnReadable() {
    if (closed_ || !polling_) return;
    int result = device_->Acknowledge();
    if (result < 0 && result != -EAGAIN) {
      // poll(2) would say so for ever.
      Stop();
      Call(kGone, 0);
      return;
    }
    Drain();
  }

  void Drain() {
    for (int turn = 0; turn < kBatchesPerTurn; turn++) {
      if (closed_ || !polling_) return;
      size_t words = 0;
      size_t records = 0;
      RingState state = device_->Fetch(batch_, capacity_, &words, &records);
      if (records > 0) Call(kBatch, static_cast<uint32_t>(records));
      if (closed_) return;
      if (state != RingState::kGood) {
        Stop();
        Call(state == RingState::kReset ? kWasReset : kBroken, 0);
        return;
      }
      if (records == 0) return;
    }
    uv_async_send(&again_);
  }

  void Call(uint32_t what, uint32_t records) {
    Napi::HandleScope scope(env_);
    napi_value arguments[2] = {Napi::Number::New(env_, what), Napi::Number::New(env_, records)};
    napi_value result = nullptr;
    // Runs nextTicks and microtasks behind the callback, so that promises resolved in it go on now.
    napi_status status = napi_make_callback(env_, async_context_, env_.Global(), callback_.Value(), 2, arguments, &result);
    if (status == napi_pending_exception) {
      napi_value error = nullptr;
      napi_get_and_clear_last_exception(env_, &error);
      napi_fatal_exception(env_, error);
    }
  }

  Napi::Env env_;
  std::unique_ptr<UioDevice> device_;
  uint32_t* batch_;
  size_t capacity_;
  Napi::Reference<Napi::Uint32Array> keep_batch_;
  Napi::Reference<Napi::ArrayBuffer> memory_;
  Napi::FunctionReference callback_;
  napi_async_context async_context_ = nullptr;
  uv_poll_t poll_;
  uv_async_t again_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  int error_ = 0;
  int open_handles_ = 0;
  bool polling_ = false;
  bool closed_ = false;
  bool forgotten_ = false;
};

UioFace* GetDevice(const Napi::CallbackInfo& info) {
  if (!info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "a UIO device is needed");
  UioFace* face = info[0].As<Napi::External<UioFace>>().Data();
  if (face->closed()) throw Napi::TypeError::New(info.Env(), "the UIO device is closed");
  return face;
}

// uioOpen(memoryFd, eventFd, kickFd, size, batch: Uint32Array, callback: (what, records) => void): handle
Napi::Value UioOpen(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[3].IsNumber() || !info[4].IsTypedArray() || !info[5].IsFunction() ||
      info[4].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array) {
    throw Napi::TypeError::New(env, "descriptors, a size, a batch and a callback are needed");
  }
  std::unique_ptr<UioDevice> device;
  const char* reason = nullptr;
  double size = info[3].As<Napi::Number>().DoubleValue();
  if (!(size > 0 && size < 1e15)) throw Napi::RangeError::New(env, "the size of the region makes no sense");
  int result = UioDevice::Open(GetFd(info, 0), GetFd(info, 1), GetFd(info, 2), static_cast<size_t>(size), &device, &reason);
  if (reason != nullptr) throw Napi::Error::New(env, reason);
  NumberOrThrow(env, result, "mmap");
  UioFace* face = new UioFace(env, std::move(device), info[4].As<Napi::Uint32Array>(), info[5].As<Napi::Function>());
  Napi::Value handle =
      Napi::External<UioFace>::New(env, face, [](Napi::Env, UioFace* forgotten) { forgotten->Forget(); });
  if (face->error() != 0) return NumberOrThrow(env, face->error(), "uv_poll_init");
  return handle;
}

// uioMemory(handle): ArrayBuffer over the region
Napi::Value UioMemory(const Napi::CallbackInfo& info) { return GetDevice(info)->memory(); }

// uioFlags(handle): the mailbox's flags
Napi::Value UioFlags(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), GetDevice(info)->flags()); }

// uioReason(handle): why the ring is broken
Napi::Value UioReason(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), GetDevice(info)->reason()); }

void UioStart(const Napi::CallbackInfo& info) { NumberOrThrow(info.Env(), GetDevice(info)->Start(), "uv_poll_start"); }
void UioStop(const Napi::CallbackInfo& info) { GetDevice(info)->Stop(); }
void UioRestart(const Napi::CallbackInfo& info) { GetDevice(info)->Restart(); }
void UioClose(const Napi::CallbackInfo& info) { GetDevice(info)->Close(); }

// uioComplete(handle, words: Uint32Array, count): what became of it, as in the callback
Napi::Value UioComplete(const Napi::CallbackInfo& info) {
  UioFace* face = GetDevice(info);
  Bytes words = GetBytes(info.Env(), info[1]);
  size_t count = info[2].ToNumber().Uint32Value();
  if (count > words.length / sizeof(uint32_t)) throw Napi::RangeError::New(info.Env(), "more words than there are");
  RingState state = face->Complete(reinterpret_cast<const uint32_t*>(words.data), count);
  uint32_t what = state == RingState::kGood ? kBatch : state == RingState::kReset ? kWasReset : kBroken;
  return Napi::Number::New(info.Env(), what);
}

// uioKick(handle): 0 or a negative errno
Napi::Value UioKick(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), GetDevice(info)->Kick()); }

}  // namespace

void RegisterUio(Napi::Env env, Napi::Object exports) {
  exports.Set("uioOpen", Napi::Function::New<UioOpen>(env, "uioOpen"));
  exports.Set("uioMemory", Napi::Function::New<UioMemory>(env, "uioMemory"));
  exports.Set("uioFlags", Napi::Function::New<UioFlags>(env, "uioFlags"));
  exports.Set("uioReason", Napi::Function::New<UioReason>(env, "uioReason"));
  exports.Set("uioStart", Napi::Function::New<UioStart>(env, "uioStart"));
  exports.Set("uioStop", Napi::Function::New<UioStop>(env, "uioStop"));
  exports.Set("uioRestart", Napi::Function::New<UioRestart>(env, "uioRestart"));
  exports.Set("uioComplete", Napi::Function::New<UioComplete>(env, "uioComplete"));
  exports.Set("uioKick", Napi::Function::New<UioKick>(env, "uioKick"));
  exports.Set("uioClose", Napi::Function::New<UioClose>(env, "uioClose"));
}

}  // namespace lunette
