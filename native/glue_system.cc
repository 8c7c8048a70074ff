// JavaScript's face of what a service tells the system around it.
#include "glue.h"
#include "io_flusher.h"
#include "unix_datagram.h"

namespace lunette {
namespace {

// sendDatagram(path: string, text: string): 0
Napi::Value SendDatagramFace(const Napi::CallbackInfo& info) {
  if (!info[0].IsString() || !info[1].IsString()) throw Napi::TypeError::New(info.Env(), "path and text are needed");
  const std::string path = info[0].As<Napi::String>();
  const std::string text = info[1].As<Napi::String>();
  return NumberOrThrow(info.Env(), SendDatagram(path.data(), path.size(), text.data(), text.size()), "sendto");
}

// becomeIoFlusher(): 0 or a negative errno
Napi::Value BecomeIoFlusherFace(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), BecomeIoFlusher()); }

}  // namespace

void RegisterSystem(Napi::Env env, Napi::Object exports) {
  exports.Set("becomeIoFlusher", Napi::Function::New(env, BecomeIoFlusherFace, "becomeIoFlusher"));
  exports.Set("sendDatagram", Napi::Function::New(env, SendDatagramFace, "sendDatagram"));
}

}  // namespace lunette
