// What the N-API faces share: arguments in, errors out. Shapes are checked here, meaning in TypeScript.
#pragma once

#include <napi.h>

#include <cstdint>

namespace lunette {

// The memory of a typed array or DataView, bounds included; throws a TypeError when the value is neither.
struct Bytes {
  uint8_t* data;
  size_t length;
};
Bytes GetBytes(Napi::Env env, Napi::Value value);

// Part [offset, offset + length) of a view, as in arguments (view, offset, length); throws a RangeError when it is not inside.
Bytes GetPart(const Napi::CallbackInfo& info, size_t first_argument);

// The file descriptor in an argument.
int GetFd(const Napi::CallbackInfo& info, size_t argument);

// Gives the value, or throws an Error with `code` (the errno's name), `errno` (negative, as Node has it) and `syscall`.
Napi::Value NumberOrThrow(Napi::Env env, int64_t result, const char* syscall);

void RegisterBytes(Napi::Env env, Napi::Object exports);
void RegisterFiles(Napi::Env env, Napi::Object exports);
void RegisterIoQueue(Napi::Env env, Napi::Object exports);
void RegisterStream(Napi::Env env, Napi::Object exports);
void RegisterSystem(Napi::Env env, Napi::Object exports);
// Linux only.
void RegisterUio(Napi::Env env, Napi::Object exports);
void RegisterNetlink(Napi::Env env, Napi::Object exports);

}  // namespace lunette
