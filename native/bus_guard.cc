#include "bus_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <mutex>

namespace lunette {
namespace {

constexpr int kSlots = 1024;

struct Watched {
  // 0: free. Written last when taken, first when given back, so that the handler sees whole entries.
  std::atomic<uintptr_t> base{0};
  std::atomic<size_t> size{0};
  std::atomic<bool> torn{false};
  bool taken = false;  // Under the lock.
};

Watched watched[kSlots];
std::mutex watched_lock;
struct sigaction before;
uintptr_t page_size = 4096;

void OnBusError(int number, siginfo_t* info, void* context) {
  uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Watched& entry : watched) {
    uintptr_t base = entry.base.load(std::memory_order_acquire);
    if (base == 0 || address < base || address - base >= entry.size.load(std::memory_order_relaxed)) continue;
    entry.torn.store(true, std::memory_order_release);
    void* page = reinterpret_cast<void*>(address & ~(page_size - 1));
    void* empty = mmap(page, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (empty != MAP_FAILED) return;
  }
  // Not ours: as if we were not there.
  if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr) {
    before.sa_sigaction(number, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(number);
  } else {
    signal(SIGBUS, SIG_DFL);  // The instruction runs again, and ends the process.
  }
}

}  // namespace

BusGuard::BusGuard(void* base, size_t size) {
  std::lock_guard<std::mutex> hold(watched_lock);
  static bool installed = false;
  if (!installed) {
    page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    struct sigaction action = {};
    action.sa_sigaction = OnBusError;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, &action, &before) != 0) return;
    installed = true;
  }
  for (int i = 0; i < kSlots; i++) {
    if (watched[i].taken) continue;
    watched[i].taken = true;
    watched[i].torn.store(false, std::memory_order_relaxed);
    watched[i].size.store(size, std::memory_order_relaxed);
    watched[i].base.store(reinterpret_cast<uintptr_t>(base), std::memory_order_release);
    slot_ = i;
    return;
  }
}

BusGuard::~BusGuard() {
  if (slot_ < 0) return;
  std::lock_guard<std::mutex> hold(watched_lock);
  watched[slot_].base.store(0, std::memory_order_release);
  watched[slot_].taken = false;
}

bool BusGuard::torn() const { return slot_ >= 0 && watched[slot_].torn.load(std::memory_order_acquire); }

}  // namespace lunette
