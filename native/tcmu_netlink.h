// The generic netlink family TCM-USER: the kernel's events about devices, and our answers, on a thread of its own.
//
// Whoever makes, changes or removes a device sleeps in the kernel until the event is answered, and an answer of another kind than the
// event's leaves it there for ever. So what was asked is kept here per device, only that can be answered, and what nobody answers in time
// is answered with -ETIMEDOUT. Knows no JavaScript.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace lunette {

// Commands of the family.
constexpr uint8_t kTcmuAdded = 1;
constexpr uint8_t kTcmuRemoved = 2;
constexpr uint8_t kTcmuReconfigured = 3;
constexpr uint8_t kTcmuDone = 3;  // To the command of an event: that of its answer.
constexpr uint8_t kTcmuSetFeatures = 7;
constexpr uint16_t kTcmuStatus = 7;
constexpr uint16_t kTcmuDeviceId = 8;
constexpr uint16_t kTcmuReplySupported = 9;

struct TcmuEvent {
  enum Kind : uint32_t {
    kDevice = 0,      // An event of the kernel: `message` is its generic header and attributes.
    kOverflow = 1,    // Events were lost: what there is has to be looked for.
    kExpired = 2,     // The watchdog has answered for `device_id`.
    kRefused = 3,     // The kernel did not take an answer: `number` is a negative errno.
    kFailed = 4,      // The socket is gone: `number` is a negative errno. The last event.
  };
  Kind kind;
  uint32_t device_id;
  int number;
  // Of kDevice and kExpired: which event of the device it is. An answer names it.
  uint32_t ticket;
  std::vector<uint8_t> message;
};

class TcmuNetlink {
 public:
  // Called from the thread when events wait.
  using Notify = void (*)(void* context);

  // Opens the socket, finds the family (-ENOENT: the module target_core_user is not loaded), joins its group and turns answers on.
  static int Open(int* fd, uint16_t* family);
  // Serves a socket that Open gave, or one of a test. The socket belongs to it.
  TcmuNetlink(int fd, uint16_t family, int timeout_ms, Notify notify, void* context);
  ~TcmuNetlink();
  TcmuNetlink(const TcmuNetlink&) = delete;
  TcmuNetlink& operator=(const TcmuNetlink&) = delete;

  std::vector<TcmuEvent> TakeEvents();
  // Answers one event of a device. False: it waits no more, because the watchdog was first, or a later event has come for the device since,
  // which this answer is not for.
  bool Answer(uint32_t device_id, uint32_t ticket, int status);
  // Somebody else answers it.
  bool Leave(uint32_t device_id, uint32_t ticket);
  // Answers an event that was sent when nobody listened. Only for what is known to wait, and known to be of that kind.
  int AnswerMissed(uint8_t event, uint32_t device_id, int status);
  // Whether the kernel waits for answers, from the next event on. It outlives us.
  int SetFeatures(bool answers);
  // Ends the thread. Events that are not answered stay so.
  void Stop();

 private:
  using Clock = std::chrono::steady_clock;
  struct Pending {
    uint8_t event;
    uint32_t ticket;
    Clock::time_point deadline;
  };

  void Work();
  bool Receive();
  void Take(const uint8_t* data, size_t length);
  void Expire();
  int WaitMs();
  // The command of the event that waits with this ticket, which then waits no more; 0: none does.
  uint8_t TakePending(uint32_t device_id, uint32_t ticket);
  int Send(uint8_t command, uint32_t device_id, int status);
  void Push(TcmuEvent event);

  const int fd_;
  const uint16_t family_;
  const int timeout_ms_;
  const Notify notify_;
  void* const context_;
  int wake_fd_;

  std::mutex lock_;
  std::map<uint32_t, Pending> pending_;
  std::vector<TcmuEvent> events_;
  uint32_t sequence_ = 1;
  uint32_t last_ticket_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace lunette
