// One datagram to a Unix socket: Node has no such sockets.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunette {

// Sends without waiting. A path that begins with @ is an abstract name. 0, or a negative errno.
int64_t SendDatagram(const char* path, size_t path_length, const void* data, size_t length);

}  // namespace lunette
