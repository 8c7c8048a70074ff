// Functions of libraries that the process may or may not have.
#pragma once

#include <dlfcn.h>

namespace lunette {

// Opens a library of the system whose own calls stay within it, although the program exports functions of the same names (Node has a zlib).
// Returns nullptr where it is not there or where that cannot be had.
inline void* OpenApart(const char* name) {
#if defined(__linux__) && defined(RTLD_DEEPBIND)
  return dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
#else
  (void)name;
  return nullptr;
#endif
}

// Looks a function up. Returns whether it is there.
template <typename Function>
bool FindFunction(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

}  // namespace lunette
