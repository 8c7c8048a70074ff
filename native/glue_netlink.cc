// JavaScript's face of TCM-USER's netlink socket. Few messages come this way: each is an object.
#include <uv.h>

#include <memory>

#include "glue.h"
#include "tcmu_netlink.h"

namespace lunette {
namespace {

class NetlinkFace {
 public:
  NetlinkFace(Napi::Env env, int fd, uint16_t family, int timeout_ms, Napi::Function callback) : env_(env) {
    callback_ = Napi::Persistent(callback);
    napi_value name = Napi::String::New(env, "lunette.netlink");
    napi_async_init(env, nullptr, name, &async_context_);
    uv_loop_t* loop = nullptr;
    napi_get_uv_event_loop(env, &loop);
    // Keeps the loop alive: who listens wants to hear.
    uv_async_init(loop, &async_, [](uv_async_t* handle) { static_cast<NetlinkFace*>(handle->data)->Deliver(); });
    async_.data = this;
    auto notify = [](void* context) { uv_async_send(&static_cast<NetlinkFace*>(context)->async_); };
    socket_ = std::make_unique<TcmuNetlink>(fd, family, timeout_ms, notify, this);
    napi_add_async_cleanup_hook(env, CleanUp, this, &hook_);
  }

  bool closed() const { return closed_; }
  TcmuNetlink& socket() { return *socket_; }

  void Close() {
    if (closed_) return;
    closed_ = true;
    socket_.reset();
    callback_.Reset();
    napi_async_destroy(env_, async_context_);
    uv_close(reinterpret_cast<uv_handle_t*>(&async_), [](uv_handle_t* handle) {
      NetlinkFace* face = static_cast<NetlinkFace*>(handle->data);
      face->handle_gone_ = true;
      napi_remove_async_cleanup_hook(face->hook_);
      face->DeleteWhenUnused();
    });
  }

  void Forget() {
    forgotten_ = true;
    Close();
    DeleteWhenUnused();
  }

 private:
  static void CleanUp(napi_async_cleanup_hook_handle, void* data) { static_cast<NetlinkFace*>(data)->Close(); }

  void DeleteWhenUnused() {
    if (handle_gone_ && forgotten_) delete this;
  }

  void Deliver() {
    if (closed_) return;
    Napi::HandleScope scope(env_);
    for (const TcmuEvent& event : socket_->TakeEvents()) {
      if (closed_) return;
      Napi::Object object = Napi::Object::New(env_);
      object.Set("kind", static_cast<uint32_t>(event.kind));
      object.Set("deviceId", event.device_id);
      object.Set("errno", event.number);
      object.Set("ticket", event.ticket);
      object.Set("message", Napi::Buffer<uint8_t>::Copy(env_, event.message.data(), event.message.size()));
      napi_value argument = object;
      napi_value result = nullptr;
      napi_status status =
          napi_make_callback(env_, async_context_, env_.Global(), callback_.Value(), 1, &argument, &result);
      if (status == napi_pending_exception) {
        napi_value error = nullptr;
        napi_get_and_clear_last_exception(env_, &error);
        napi_fatal_exception(env_, error);
      }
    }
  }

  Napi::Env env_;
  std::unique_ptr<TcmuNetlink> socket_;
  Napi::FunctionReference callback_;
  napi_async_context async_context_ = nullptr;
  uv_async_t async_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  bool closed_ = false;
  bool handle_gone_ = false;
  bool forgotten_ = false;
};

NetlinkFace* GetFace(const Napi::CallbackInfo& info) {
  if (!info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "a netlink socket is needed");
  NetlinkFace* face = info[0].As<Napi::External<NetlinkFace>>().Data();
  if (face->closed()) throw Napi::TypeError::New(info.Env(), "the netlink socket is closed");
  return face;
}

// netlinkOpen(timeoutMs, callback: ({kind, deviceId, ticket, errno, message}) => void): handle
Napi::Value NetlinkOpen(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsNumber() || !info[1].IsFunction()) throw Napi::TypeError::New(env, "a timeout and a callback are needed");
  int fd = -1;
  uint16_t family = 0;
  NumberOrThrow(env, TcmuNetlink::Open(&fd, &family), "netlink");
  NetlinkFace* face =
      new NetlinkFace(env, fd, family, info[0].As<Napi::Number>().Int32Value(), info[1].As<Napi::Function>());
  return Napi::External<NetlinkFace>::New(env, face, [](Napi::Env, NetlinkFace* forgotten) { forgotten->Forget(); });
}

// netlinkAnswer(handle, deviceId, ticket, status): false when that event waits no more
Napi::Value NetlinkAnswer(const Napi::CallbackInfo& info) {
  bool done = GetFace(info)->socket().Answer(info[1].ToNumber().Uint32Value(), info[2].ToNumber().Uint32Value(),
                                             info[3].ToNumber().Int32Value());
  return Napi::Boolean::New(info.Env(), done);
}

// netlinkLeave(handle, deviceId, ticket): false when that event waits no more
Napi::Value NetlinkLeave(const Napi::CallbackInfo& info) {
  bool left = GetFace(info)->socket().Leave(info[1].ToNumber().Uint32Value(), info[2].ToNumber().Uint32Value());
  return Napi::Boolean::New(info.Env(), left);
}

// netlinkAnswerMissed(handle, event, deviceId, status): 0 or a negative errno
Napi::Value NetlinkAnswerMissed(const Napi::CallbackInfo& info) {
  int result = GetFace(info)->socket().AnswerMissed(static_cast<uint8_t>(info[1].ToNumber().Uint32Value()),
                                                    info[2].ToNumber().Uint32Value(), info[3].ToNumber().Int32Value());
  return Napi::Number::New(info.Env(), result);
}

// netlinkSetFeatures(handle, answers): 0 or a negative errno
Napi::Value NetlinkSetFeatures(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), GetFace(info)->socket().SetFeatures(info[1].ToBoolean().Value()));
}

void NetlinkClose(const Napi::CallbackInfo& info) { GetFace(info)->Close(); }

}  // namespace

void RegisterNetlink(Napi::Env env, Napi::Object exports) {
  exports.Set("netlinkOpen", Napi::Function::New<NetlinkOpen>(env, "netlinkOpen"));
  exports.Set("netlinkAnswer", Napi::Function::New<NetlinkAnswer>(env, "netlinkAnswer"));
  exports.Set("netlinkLeave", Napi::Function::New<NetlinkLeave>(env, "netlinkLeave"));
  exports.Set("netlinkAnswerMissed", Napi::Function::New<NetlinkAnswerMissed>(env, "netlinkAnswerMissed"));
  exports.Set("netlinkSetFeatures", Napi::Function::New<NetlinkSetFeatures>(env, "netlinkSetFeatures"));
  exports.Set("netlinkClose", Napi::Function::New<NetlinkClose>(env, "netlinkClose"));
}

}  // namespace lunette
