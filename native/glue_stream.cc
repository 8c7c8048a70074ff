// JavaScript's face of a connected stream socket: read when the loop says so into memory that is used again, written at once.
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#include <uv.h>

#include "glue.h"

namespace lunette {
namespace {

// What the callback gets when there is room for more to be written; anything below is bytes read, 0 the end, or a negative errno.
constexpr double kWritable = 1 << 30;
constexpr size_t kMaxSegments = 64;
// Send buffer of a socket on one machine, bytes; the kernel doubles it for its own accounts. An answer of a megabyte goes in at once.
constexpr int kLocalBuffer = 1 << 20;
// Of one stream, before others have their turn.
constexpr int kReadsInARow = 8;
// How often it is tried whether more comes at once, while it does not.
constexpr unsigned kTryAgainEvery = 32;

class StreamFace {
 public:
  // Takes the descriptor over. `buffer` may be shared by streams of one thread: it is read before the callback returns.
  StreamFace(Napi::Env env, int fd, Napi::Uint8Array buffer, Napi::Function callback)
      : env_(env), fd_(fd), buffer_(buffer.Data()), size_(buffer.ByteLength()) {
    WidenLocal(fd);
    keep_buffer_ = Napi::Persistent(buffer);
    callback_ = Napi::Persistent(callback);
    napi_value name = Napi::String::New(env, "lunette.stream");
    napi_async_init(env, nullptr, name, &async_context_);
    uv_loop_t* loop = nullptr;
    napi_get_uv_event_loop(env, &loop);
    error_ = uv_poll_init(loop, &poll_, fd);
    poll_.data = this;
    if (error_ != 0) {
      // No handle was made, so none is to be closed.
      closed_ = handle_gone_ = true;
      Release();
      return;
    }
    napi_add_async_cleanup_hook(env, CleanUp, this, &hook_);
  }

  int error() const { return error_; }
  bool closed() const { return closed_; }

  int Watch(int events) {
    events_ = events;
    return events == 0 ? uv_poll_stop(&poll_) : uv_poll_start(&poll_, events, OnEvent);
  }

  // Segments are words: address and length of each.
  int64_t Write(const double* words, size_t count) {
    iovec segments[kMaxSegments];
    for (size_t i = 0; i < count; i++) {
      segments[i].iov_base = reinterpret_cast<void*>(static_cast<uintptr_t>(words[2 * i]));
      segments[i].iov_len = static_cast<size_t>(words[2 * i + 1]);
    }
    ssize_t done;
    do done = writev(fd_, segments, static_cast<int>(count));
    while (done < 0 && errno == EINTR);
    return done < 0 ? (errno == EWOULDBLOCK ? -EAGAIN : -errno) : done;
  }

  void Shutdown() { shutdown(fd_, SHUT_WR); }

  void Close() {
    if (closed_) return;
    closed_ = true;
    uv_poll_stop(&poll_);
    Release();
    uv_close(reinterpret_cast<uv_handle_t*>(&poll_), [](uv_handle_t* handle) {
      StreamFace* face = static_cast<StreamFace*>(handle->data);
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
  // Sockets on one machine do not grow with use, as TCP's do: a large answer would go in many pieces, with a turn of both loops for each.
  static void WidenLocal(int fd) {
    sockaddr_storage address;
    socklen_t length = sizeof(address);
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0 || address.ss_family != AF_UNIX) return;
    int bytes = kLocalBuffer;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));  // The system takes less where it allows no more.
  }

  static void CleanUp(napi_async_cleanup_hook_handle, void* data) { static_cast<StreamFace*>(data)->Close(); }

  void Release() {
    // Now, while the environment is there for certain: at its end the handle goes later than it.
    callback_.Reset();
    keep_buffer_.Reset();
    napi_async_destroy(env_, async_context_);
    close(fd_);
  }

  void DeleteWhenUnused() {
    if (handle_gone_ && forgotten_) delete this;
  }

  static void OnEvent(uv_poll_t* poll, int status, int events) {
    StreamFace* face = static_cast<StreamFace*>(poll->data);
    if (status < 0) {
      // libuv says EBADF for whatever is wrong, and has stopped to watch; the socket knows what it is.
      face->Call(face->SocketError(status));
      return;
    }
    if ((events & UV_WRITABLE) != 0) face->Call(kWritable);
    // What was called may have closed the stream, or have enough to do for now.
    if ((events & face->events_ & UV_READABLE) != 0 && !face->closed_) face->Read();
  }

  int SocketError(int otherwise) const {
    int error = 0;
    socklen_t length = sizeof error;
    return getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error != 0 ? -error : otherwise;
  }

  // Reads, and reads on while that has lately found more: a peer that sends one request after the other then costs no turn of the loop for each.
  void Read() {
    for (int turn = 0; turn < kReadsInARow; turn++) {
      bool again = turn > 0;
      ssize_t done;
      do done = recv(fd_, buffer_, size_, 0);
      while (done < 0 && errno == EINTR);
      bool nothing = done < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
      if (again) more_comes_ = !nothing;
      if (nothing) return;
      Call(done < 0 ? -errno : static_cast<double>(done));
      if (done <= 0 || closed_ || (events_ & UV_READABLE) == 0) return;
      if (!more_comes_ && ++events_seen_ % kTryAgainEvery != 0) return;
    }
  }

  void Call(double event) {
    Napi::HandleScope scope(env_);
    napi_value argument = Napi::Number::New(env_, event);
    napi_value result = nullptr;
    napi_status status =
        napi_make_callback(env_, async_context_, env_.Global(), callback_.Value(), 1, &argument, &result);
    if (status == napi_pending_exception) {
      napi_value error = nullptr;
      napi_get_and_clear_last_exception(env_, &error);
      napi_fatal_exception(env_, error);
    }
  }

  Napi::Env env_;
  int fd_;
  uint8_t* buffer_;
  size_t size_;
  int error_ = 0;
  int events_ = 0;
  unsigned events_seen_ = 0;
  bool more_comes_ = false;
  Napi::Reference<Napi::Uint8Array> keep_buffer_;
  Napi::FunctionReference callback_;
  napi_async_context async_context_ = nullptr;
  uv_poll_t poll_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  bool closed_ = false;
  bool handle_gone_ = false;
  bool forgotten_ = false;
};

StreamFace* GetStream(const Napi::CallbackInfo& info) {
  if (!info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "a stream is needed");
  StreamFace* face = info[0].As<Napi::External<StreamFace>>().Data();
  if (face->closed()) throw Napi::TypeError::New(info.Env(), "the stream is closed");
  return face;
}

// streamOpen(fd, buffer: Uint8Array, onEvent: (event) => void): handle, on a duplicate of the descriptor
Napi::Value StreamOpen(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[1].IsTypedArray() || info[1].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array ||
      !info[2].IsFunction()) {
    throw Napi::TypeError::New(env, "a descriptor, a Uint8Array and a callback are needed");
  }
  int fd = fcntl(GetFd(info, 0), F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return NumberOrThrow(env, -errno, "fcntl");
  StreamFace* face = new StreamFace(env, fd, info[1].As<Napi::Uint8Array>(), info[2].As<Napi::Function>());
  Napi::Value handle =
      Napi::External<StreamFace>::New(env, face, [](Napi::Env, StreamFace* stream) { stream->Forget(); });
  if (face->error() != 0) return NumberOrThrow(env, face->error(), "uv_poll_init");
  return handle;
}

// streamWatch(handle, readable: boolean, writable: boolean): void
void StreamWatch(const Napi::CallbackInfo& info) {
  int events = (info[1].ToBoolean() ? UV_READABLE : 0) | (info[2].ToBoolean() ? UV_WRITABLE : 0);
  NumberOrThrow(info.Env(), GetStream(info)->Watch(events), "uv_poll_start");
}

// streamWrite(handle, segments): bytes written, or a negative errno. Once per batch of answers: bare N-API.
napi_value StreamWrite(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  size_t count = 2;
  void* data = nullptr;
  void* words = nullptr;
  uint32_t segments = 0;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, &words) != napi_ok || count < 2 ||
      napi_get_value_external(env, arguments[0], &data) != napi_ok ||
      napi_get_value_uint32(env, arguments[1], &segments) != napi_ok || segments > kMaxSegments) {
    napi_throw_type_error(env, nullptr, "a stream and a number of segments are needed");
    return nullptr;
  }
  StreamFace* face = static_cast<StreamFace*>(data);
  napi_value result = nullptr;
  napi_create_int64(env, face->closed() ? -EBADF : face->Write(static_cast<const double*>(words), segments),
                    &result);
  return result;
}

// streamShutdown(handle): void
void StreamShutdown(const Napi::CallbackInfo& info) { GetStream(info)->Shutdown(); }

// streamClose(handle): void
void StreamClose(const Napi::CallbackInfo& info) { GetStream(info)->Close(); }

}  // namespace

void RegisterStream(Napi::Env env, Napi::Object exports) {
  Napi::Float64Array words = Napi::Float64Array::New(env, 2 * kMaxSegments);
  exports.Set("streamWords", words);  // one per environment, as long as it
  exports.Set("streamWritable", Napi::Number::New(env, kWritable));
  exports.Set("streamOpen", Napi::Function::New<StreamOpen>(env, "streamOpen"));
  exports.Set("streamWatch", Napi::Function::New<StreamWatch>(env, "streamWatch"));
  exports.Set("streamShutdown", Napi::Function::New<StreamShutdown>(env, "streamShutdown"));
  exports.Set("streamClose", Napi::Function::New<StreamClose>(env, "streamClose"));
  napi_value write = nullptr;
  napi_create_function(env, "streamWrite", NAPI_AUTO_LENGTH, StreamWrite, words.Data(), &write);
  exports.Set("streamWrite", write);
}

}  // namespace lunette
