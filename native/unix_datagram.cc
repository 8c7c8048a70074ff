#include "unix_datagram.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace lunette {

int64_t SendDatagram(const char* path, size_t path_length, const void* data, size_t length) {
  sockaddr_un address{};
  if (path_length == 0 || path_length >= sizeof(address.sun_path)) return -ENAMETOOLONG;
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, path, path_length);
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';
#if defined(__linux__)
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
#else
  int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
  const int flags = MSG_DONTWAIT;
#endif
  if (fd < 0) return -errno;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path_length);
  const ssize_t sent = sendto(fd, data, length, flags, reinterpret_cast<const sockaddr*>(&address), size);
  const int64_t result = sent < 0 ? -errno : 0;
  close(fd);
  return result;
}

}  // namespace lunette
