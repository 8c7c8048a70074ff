// Keeps the process alive when the kernel takes pages of a mapping away: touching one raises SIGBUS.
//
// TCMU's data area is such a mapping: its pages are there while a command refers to them, and may go at any time after. After a reset of
// the ring that is at once, while we may still be reading. A page that is missed is replaced by an empty one of our own, and the mapping
// counts as torn from then on: what was read is void, and nothing may be served from it any more.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace lunette {

class BusGuard {
 public:
  // Watches [base, base + size). The handler of SIGBUS is installed with the first one.
  BusGuard(void* base, size_t size);
  ~BusGuard();
  BusGuard(const BusGuard&) = delete;
  BusGuard& operator=(const BusGuard&) = delete;

  // False: there is no room for more; SIGBUS in this mapping ends the process.
  bool watching() const { return slot_ >= 0; }
  // A page was missing when it was touched.
  bool torn() const;

 private:
  int slot_ = -1;
};

}  // namespace lunette
