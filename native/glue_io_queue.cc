// JavaScript's face of the I/O queue: batches of requests in as words, batches of completions out as words.
#include <uv.h>

#include "glue.h"
#include "inflate.h"
#include "io_queue.h"
#include "streams.h"

namespace lunette {
namespace {

// A request in the batch: these words, then address and length of each segment.
constexpr size_t kOperation = 0;
constexpr size_t kSlot = 1;
constexpr size_t kFd = 2;
constexpr size_t kOffset = 3;
constexpr size_t kLength = 4;
constexpr size_t kSource = 5;
constexpr size_t kSourceOffset = 6;
constexpr size_t kSegmentCount = 7;
constexpr size_t kRequestWords = 8;

// A completion: slot, result (negative errno or value), microseconds on the thread.
constexpr size_t kCompletionWords = 3;

class QueueFace {
 public:
  QueueFace(Napi::Env env, unsigned threads, Napi::Float64Array completions, Napi::Function callback)
      : env_(env),
        queue_(0, Notify, this),
        completions_(completions.Data()),
        capacity_(completions.ElementLength() / kCompletionWords) {
    keep_completions_ = Napi::Persistent(completions);
    callback_ = Napi::Persistent(callback);
    napi_value name = Napi::String::New(env, "lunette.io");
    napi_async_init(env, nullptr, name, &async_context_);
    uv_loop_t* loop = nullptr;
    napi_get_uv_event_loop(env, &loop);
    uv_async_init(loop, &async_, Deliver);
    async_.data = this;
    uv_unref(reinterpret_cast<uv_handle_t*>(&async_));
    threads_ = queue_.SetThreads(threads);
    napi_add_async_cleanup_hook(env, CleanUp, this, &hook_);
  }

  unsigned threads() const { return threads_; }
  void SetThreads(unsigned threads) { threads_ = queue_.SetThreads(threads); }
  bool closed() const { return closed_; }

  // Returns requests taken, or -1 when the words make no sense (nothing was submitted then).
  int Submit(const double* words, size_t count) {
    Request* first = nullptr;
    Request* last = nullptr;
    int taken = 0;
    for (size_t at = 0; at < count;) {
      const double* r = words + at;
      size_t left = count - at;
      size_t segments = left >= kRequestWords ? static_cast<size_t>(r[kSegmentCount]) : 0;
      if (left < kRequestWords || segments > (left - kRequestWords) / 2) {
        while (first != nullptr) {
          Request* next = first->next;
          queue_.Recycle(first);
          first = next;
        }
        return -1;
      }
      Request* request = queue_.Prepare();
      request->operation = static_cast<Operation>(static_cast<uint32_t>(r[kOperation]));
      request->slot = static_cast<uint32_t>(r[kSlot]);
      request->fd = static_cast<int>(r[kFd]);
      request->offset = static_cast<int64_t>(r[kOffset]);
      request->length = static_cast<int64_t>(r[kLength]);
      request->source = static_cast<int>(r[kSource]);
      request->source_offset = static_cast<int64_t>(r[kSourceOffset]);
      const double* segment = r + kRequestWords;
      for (size_t i = 0; i < segments; i++, segment += 2) {
        request->segments.push_back({reinterpret_cast<void*>(static_cast<uintptr_t>(segment[0])),
                                     static_cast<size_t>(segment[1])});
      }
      request->next = nullptr;
      (last == nullptr ? first : last->next) = request;
      last = request;
      at += kRequestWords + 2 * segments;
      taken++;
    }
    if (taken == 0) return 0;
    // The loop stays alive while something is on its way.
    if (in_flight_ == 0) uv_ref(reinterpret_cast<uv_handle_t*>(&async_));
    in_flight_ += static_cast<size_t>(taken);
    queue_.Submit(first);
    return taken;
  }

  // Runs what is queued to its end, joins the threads and goes away with its handle. What completes after this is not delivered.
  void Close() {
    if (closed_) return;
    closed_ = true;
    queue_.Stop();
    // Now, while the environment is there for certain: at its end the handle goes later than it.
    callback_.Reset();
    keep_completions_.Reset();
    napi_async_destroy(env_, async_context_);
    uv_close(reinterpret_cast<uv_handle_t*>(&async_), [](uv_handle_t* handle) {
      QueueFace* face = static_cast<QueueFace*>(handle->data);
      face->handle_gone_ = true;
      napi_remove_async_cleanup_hook(face->hook_);
      face->DeleteWhenUnused();
    });
  }

  // The external that JavaScript holds was collected: nobody can call any more.
  void Forget() {
    forgotten_ = true;
    Close();
    DeleteWhenUnused();
  }

 private:
  static void Notify(void* context) { uv_async_send(&static_cast<QueueFace*>(context)->async_); }

  static void CleanUp(napi_async_cleanup_hook_handle, void* data) { static_cast<QueueFace*>(data)->Close(); }

  void DeleteWhenUnused() {
    if (handle_gone_ && forgotten_) delete this;
  }

  static void Deliver(uv_async_t* async) {
    QueueFace* face = static_cast<QueueFace*>(async->data);
    if (!face->closed_) face->Deliver();
  }

  void Deliver() {
    Napi::HandleScope scope(env_);
    Request* done = queue_.TakeDone();
    while (done != nullptr && !closed_) {
      size_t count = 0;
      for (; done != nullptr && count < capacity_; count++) {
        double* words = completions_ + count * kCompletionWords;
        words[0] = static_cast<double>(done->slot);
        words[1] = static_cast<double>(done->result);
        words[2] = static_cast<double>(done->elapsed_us);
        Request* next = done->next;
        queue_.Recycle(done);
        done = next;
      }
      in_flight_ -= count;
      if (in_flight_ == 0) uv_unref(reinterpret_cast<uv_handle_t*>(&async_));
      Call(count);
    }
    while (done != nullptr) {
      Request* next = done->next;
      queue_.Recycle(done);
      done = next;
    }
  }

  void Call(size_t count) {
    napi_value argument = Napi::Number::New(env_, static_cast<double>(count));
    napi_value result = nullptr;
    // Runs nextTicks and microtasks behind the callback, so that promises resolved in it go on now.
    napi_status status =
        napi_make_callback(env_, async_context_, env_.Global(), callback_.Value(), 1, &argument, &result);
    if (status == napi_pending_exception) {
      napi_value error = nullptr;
      napi_get_and_clear_last_exception(env_, &error);
      napi_fatal_exception(env_, error);
    }
  }

  Napi::Env env_;
  IoQueue queue_;
  double* completions_;
  size_t capacity_;
  unsigned threads_ = 0;
  Napi::Reference<Napi::Float64Array> keep_completions_;
  Napi::FunctionReference callback_;
  napi_async_context async_context_ = nullptr;
  uv_async_t async_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  size_t in_flight_ = 0;
  bool closed_ = false;
  bool handle_gone_ = false;
  bool forgotten_ = false;
};

QueueFace* GetQueue(const Napi::CallbackInfo& info) {
  if (!info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "a queue is needed");
  QueueFace* face = info[0].As<Napi::External<QueueFace>>().Data();
  if (face->closed()) throw Napi::TypeError::New(info.Env(), "the queue is closed");
  return face;
}

// queueCreate(threads, completions: Float64Array, onCompletions: (count) => void): handle
Napi::Value QueueCreate(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsNumber() || !info[1].IsTypedArray() || !info[2].IsFunction() ||
      info[1].As<Napi::TypedArray>().TypedArrayType() != napi_float64_array) {
    throw Napi::TypeError::New(env, "threads, completions and a callback are needed");
  }
  QueueFace* face = new QueueFace(env, info[0].As<Napi::Number>().Uint32Value(), info[1].As<Napi::Float64Array>(),
                                  info[2].As<Napi::Function>());
  Napi::Value handle =
      Napi::External<QueueFace>::New(env, face, [](Napi::Env, QueueFace* queue) { queue->Forget(); });
  if (face->threads() == 0) {
    face->Close();
    NumberOrThrow(env, -EAGAIN, "pthread_create");
  }
  return handle;
}

// queueSubmit(handle, words: Float64Array, wordCount): number of requests
Napi::Value QueueSubmit(const Napi::CallbackInfo& info) {
  QueueFace* face = GetQueue(info);
  Bytes words = GetBytes(info.Env(), info[1]);
  size_t count = info[2].ToNumber().Uint32Value();
  if (count > words.length / sizeof(double)) throw Napi::RangeError::New(info.Env(), "more words than there are");
  int taken = face->Submit(reinterpret_cast<const double*>(words.data), count);
  if (taken < 0) throw Napi::RangeError::New(info.Env(), "the batch ends within a request");
  return Napi::Number::New(info.Env(), taken);
}

// queueSetThreads(handle, threads): number of threads
Napi::Value QueueSetThreads(const Napi::CallbackInfo& info) {
  QueueFace* face = GetQueue(info);
  face->SetThreads(info[1].ToNumber().Uint32Value());
  return Napi::Number::New(info.Env(), face->threads());
}

// queueClose(handle): void
void QueueClose(const Napi::CallbackInfo& info) { GetQueue(info)->Close(); }

// canUnpack(form): boolean
Napi::Value CanUnpackForm(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), CanUnpack(static_cast<StreamForm>(info[0].ToNumber().Uint32Value())));
}

// canPack(form): boolean
Napi::Value CanPackForm(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), CanPack(static_cast<StreamForm>(info[0].ToNumber().Uint32Value())));
}

}  // namespace

void RegisterIoQueue(Napi::Env env, Napi::Object exports) {
  exports.Set("queueCreate", Napi::Function::New<QueueCreate>(env, "queueCreate"));
  exports.Set("queueSubmit", Napi::Function::New<QueueSubmit>(env, "queueSubmit"));
  exports.Set("queueSetThreads", Napi::Function::New<QueueSetThreads>(env, "queueSetThreads"));
  exports.Set("canUnpack", Napi::Function::New<CanUnpackForm>(env, "canUnpack"));
  exports.Set("canPack", Napi::Function::New<CanPackForm>(env, "canPack"));
  exports.Set("queueClose", Napi::Function::New<QueueClose>(env, "queueClose"));

  const struct {
    const char* name;
    Operation operation;
  } operations[] = {
      {"read", Operation::kRead},
      {"write", Operation::kWrite},
      {"dataSync", Operation::kDataSync},
      {"truncate", Operation::kTruncate},
      {"punchHole", Operation::kPunchHole},
      {"zeroRange", Operation::kZeroRange},
      {"allocate", Operation::kAllocate},
      {"seekData", Operation::kSeekData},
      {"seekHole", Operation::kSeekHole},
      {"cloneRange", Operation::kCloneRange},
      {"copyRange", Operation::kCopyRange},
      {"deviceDiscard", Operation::kDeviceDiscard},
      {"deviceZeroOut", Operation::kDeviceZeroOut},
      {"deviceZeroRange", Operation::kDeviceZeroRange},
      {"lock", Operation::kLock},
      {"unlock", Operation::kUnlock},
      {"testLock", Operation::kTestLock},
      {"copySparse", Operation::kCopySparse},
      {"findZeros", Operation::kFindZeros},
      {"compare", Operation::kCompare},
      {"unpack", Operation::kUnpack},
      {"pack", Operation::kPack},
  };
  Napi::Object codes = Napi::Object::New(env);
  for (const auto& entry : operations) codes.Set(entry.name, static_cast<uint32_t>(entry.operation));
  if (CanInflate()) codes.Set("inflate", static_cast<uint32_t>(Operation::kInflate));
  exports.Set("operations", codes);
}

}  // namespace lunette
