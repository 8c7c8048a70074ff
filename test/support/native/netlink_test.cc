// Rules of native/tcmu_netlink.cc and native/genl_message.cc: a socket pair stands for the kernel. Built and run by
// test/unit/native/netlink.test.ts, with sanitizers. Usage: netlink_test RULE SEED
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <random>

#include "../../../native/genl_message.h"
#include "../../../native/tcmu_netlink.h"

using namespace lunette;

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                \
    }                                                                         \
  } while (0)

namespace {

constexpr uint16_t kFamily = 30;
std::mt19937 random_source;

struct Answered {
  uint8_t command;
  uint32_t device_id;
  int status;
};

// The kernel's end, and ours on it.
class Pair {
 public:
  explicit Pair(int timeout_ms) {
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds) == 0);
    kernel_ = fds[1];
    ours_ = std::make_unique<TcmuNetlink>(fds[0], kFamily, timeout_ms, [](void* context) { (*static_cast<std::atomic<int>*>(context))++; },
                                          &notified_);
  }
  ~Pair() {
    ours_.reset();
    if (kernel_ >= 0) close(kernel_);
  }
  TcmuNetlink& ours() { return *ours_; }

  void Send(const std::vector<uint8_t>& bytes) { CHECK(send(kernel_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size())); }

  void SendEvent(uint8_t command, uint32_t device_id, uint16_t family = kFamily) {
    GenlMessage message(family, 0, 0, command, 2);
    message.PutText(1, "tcm-user/1/d1/qcow2//disk");
    message.Put32(2, 7);
    message.Put32(kTcmuDeviceId, device_id);
    Send(message.bytes());
  }

  void HangUp() {
    close(kernel_);
    kernel_ = -1;
  }

  // Events until there are so many, or 5 s are over.
  std::vector<TcmuEvent> Events(size_t count) {
    std::vector<TcmuEvent> all;
    for (int i = 0; i < 5000 && all.size() < count; i++) {
      for (TcmuEvent& event : ours_->TakeEvents()) all.push_back(std::move(event));
      if (all.size() < count) usleep(1000);
    }
    CHECK(all.size() == count);
    // An event can be taken before it is told of.
    for (int i = 0; i < 5000 && notified_.load() == 0; i++) usleep(1000);
    CHECK(notified_.load() > 0);
    return all;
  }

  // The next answer; false when there is none within the time.
  bool Answer(Answered* out, int timeout_ms) {
    pollfd waiting = {kernel_, POLLIN, 0};
    if (poll(&waiting, 1, timeout_ms) != 1) return false;
    uint8_t buffer[4096];
    ssize_t length = recv(kernel_, buffer, sizeof buffer, 0);
    size_t at = 0;
    NetlinkView view;
    CHECK(length > 0 && NextMessage(buffer, static_cast<size_t>(length), &at, &view));
    CHECK(view.header.type == kFamily && view.body_length >= kGenlHeaderSize);
    uint32_t status = 0;
    out->command = view.body[0];
    const uint8_t* attributes = view.body + kGenlHeaderSize;
    size_t size = view.body_length - kGenlHeaderSize;
    out->device_id = 0;
    if (out->command == kTcmuSetFeatures) {
      const uint8_t* value;
      size_t value_length;
      CHECK(FindAttribute(attributes, size, kTcmuReplySupported, &value, &value_length) && value_length == 1);
      out->status = value[0];
      return true;
    }
    CHECK(FindAttribute32(attributes, size, kTcmuDeviceId, &out->device_id));
    CHECK(FindAttribute32(attributes, size, kTcmuStatus, &status));
    out->status = static_cast<int>(status);
    return true;
  }

 private:
  int kernel_;
  std::atomic<int> notified_{0};
  std::unique_ptr<TcmuNetlink> ours_;
};

// An answer is of its event's kind, and goes out once.
void RightKind() {
  Pair pair(60000);
  for (int round = 0; round < 200; round++) {
    uint32_t device_id = static_cast<uint32_t>(round);
    uint8_t command = static_cast<uint8_t>(1 + random_source() % 3);
    pair.SendEvent(command, device_id);
    TcmuEvent event = pair.Events(1)[0];
    CHECK(event.kind == TcmuEvent::kDevice && event.device_id == device_id && event.message[0] == command);
    const uint8_t* name;
    size_t length;
    CHECK(FindAttribute(event.message.data() + kGenlHeaderSize, event.message.size() - kGenlHeaderSize, 1, &name, &length));
    CHECK(strcmp(reinterpret_cast<const char*>(name), "tcm-user/1/d1/qcow2//disk") == 0);
    int status = round % 2 == 0 ? 0 : -ENOENT;
    CHECK(!pair.ours().Answer(device_id + 1000, event.ticket, 0));
    CHECK(!pair.ours().Answer(device_id, event.ticket + 1, 0));
    CHECK(pair.ours().Answer(device_id, event.ticket, status));
    CHECK(!pair.ours().Answer(device_id, event.ticket, status));
    Answered answered;
    CHECK(pair.Answer(&answered, 5000));
    CHECK(answered.command == command + 3 && answered.device_id == device_id && answered.status == status);
  }
}

// What nobody answers in time is answered with a failure, of its own kind; what is left to others is not.
void Watchdog() {
  Pair pair(150);
  pair.SendEvent(kTcmuAdded, 1);
  pair.SendEvent(kTcmuRemoved, 2);
  pair.SendEvent(kTcmuReconfigured, 3);
  pair.SendEvent(kTcmuAdded, 4);
  std::vector<TcmuEvent> events = pair.Events(4);
  CHECK(pair.ours().Leave(4, events[3].ticket));
  CHECK(!pair.ours().Leave(4, events[3].ticket));
  bool seen[4] = {};
  for (int i = 0; i < 3; i++) {
    Answered answered;
    CHECK(pair.Answer(&answered, 5000));
    CHECK(answered.status == -ETIMEDOUT && answered.device_id <= 3 && answered.command == answered.device_id + 3);
    seen[answered.device_id] = true;
  }
  CHECK(seen[1] && seen[2] && seen[3]);
  for (const TcmuEvent& event : pair.Events(3)) CHECK(event.kind == TcmuEvent::kExpired);
  CHECK(!pair.ours().Answer(1, events[0].ticket, 0));
  Answered none;
  CHECK(!pair.Answer(&none, 300));
}

// An answer that comes late does not hit the next event of its device.
void LateAnswer() {
  Pair pair(60000);
  pair.SendEvent(kTcmuAdded, 5);
  TcmuEvent first = pair.Events(1)[0];
  // Whoever waited was aborted, and the device was removed since.
  pair.SendEvent(kTcmuRemoved, 5);
  TcmuEvent second = pair.Events(1)[0];
  CHECK(first.ticket != second.ticket);
  CHECK(!pair.ours().Answer(5, first.ticket, -ENOENT));
  CHECK(!pair.ours().Leave(5, first.ticket));
  Answered answered;
  CHECK(!pair.Answer(&answered, 100));
  CHECK(pair.ours().Answer(5, second.ticket, 0));
  CHECK(pair.Answer(&answered, 5000));
  CHECK(answered.command == kTcmuRemoved + 3 && answered.status == 0);
}

// An event that nobody heard is answered by its kind, unless one of that device waits.
void Missed() {
  Pair pair(60000);
  Answered answered;
  CHECK(pair.ours().AnswerMissed(kTcmuAdded, 9, 0) == 0);
  CHECK(pair.Answer(&answered, 5000) && answered.command == 4 && answered.device_id == 9);
  pair.SendEvent(kTcmuReconfigured, 9);
  pair.Events(1);
  CHECK(pair.ours().AnswerMissed(kTcmuAdded, 9, 0) == -EBUSY);
  CHECK(pair.ours().AnswerMissed(7, 10, 0) == -EINVAL);
  CHECK(pair.ours().SetFeatures(false) == 0);
  CHECK(pair.Answer(&answered, 5000) && answered.command == kTcmuSetFeatures && answered.status == 0);
}

// The kernel's refusal of an answer is told; other families' messages and acknowledgements are not.
void Refusal() {
  Pair pair(60000);
  auto error = [&](int number) {
    std::vector<uint8_t> bytes(36);
    uint32_t length = 36;
    uint16_t type = 2;
    memcpy(&bytes[0], &length, 4);
    memcpy(&bytes[4], &type, 2);
    memcpy(&bytes[16], &number, 4);
    pair.Send(bytes);
  };
  error(0);
  pair.SendEvent(kTcmuAdded, 5, kFamily + 1);
  pair.SendEvent(9, 5);
  error(-ENODEV);
  TcmuEvent event = pair.Events(1)[0];
  CHECK(event.kind == TcmuEvent::kRefused && event.number == -ENODEV);
}

// A socket that ends is told once.
void HangUp() {
  Pair pair(60000);
  pair.HangUp();
  TcmuEvent event = pair.Events(1)[0];
  CHECK(event.kind == TcmuEvent::kFailed && event.number < 0);
}

// Messages of any bytes: nothing is read outside of them.
void Garbage() {
  Pair pair(60000);
  for (int round = 0; round < 3000; round++) {
    GenlMessage message(kFamily, 0, 0, static_cast<uint8_t>(1 + random_source() % 3), 2);
    message.PutText(1, std::string(random_source() % 40, 'x'));
    message.Put32(kTcmuDeviceId, static_cast<uint32_t>(random_source()));
    std::vector<uint8_t> bytes = message.bytes();
    for (int flips = static_cast<int>(random_source() % 6); flips > 0; flips--) bytes[random_source() % bytes.size()] = static_cast<uint8_t>(random_source());
    bytes.resize(1 + random_source() % bytes.size());
    pair.Send(bytes);
    if (round % 64 == 0) pair.ours().TakeEvents();
  }
  pair.SendEvent(kTcmuAdded, 0xabcdef);
  for (int i = 0; i < 5000; i++) {
    for (const TcmuEvent& event : pair.ours().TakeEvents()) {
      if (event.device_id == 0xabcdef) return;
    }
    usleep(1000);
  }
  CHECK(false);
}

// The process has no descriptor left for what wakes the thread.
void NoDescriptor() {
  alarm(20);
  rlimit before;
  CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
  int next = dup(0);
  CHECK(next >= 0 && close(next) == 0);
  rlimit few = before;
  few.rlim_cur = static_cast<rlim_t>(next) + 2;
  CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
  Pair pair(60000);
  CHECK(dup(0) < 0 && errno == EMFILE);
  CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
  pair.SendEvent(kTcmuAdded, 5);
  TcmuEvent event = pair.Events(1)[0];
  CHECK(pair.ours().Answer(5, event.ticket, 0));
}

}  // namespace

int main(int argc, char** argv) {
  const struct {
    const char* name;
    void (*run)();
  } rules[] = {{"right-kind", RightKind}, {"watchdog", Watchdog}, {"missed", Missed},
               {"late-answer", LateAnswer},
               {"refusal", Refusal},      {"hang-up", HangUp},    {"garbage", Garbage},
               {"no-descriptor", NoDescriptor}};
  if (argc != 3) return 2;
  random_source.seed(static_cast<unsigned>(atol(argv[2])));
  for (const auto& rule : rules) {
    if (strcmp(rule.name, argv[1]) != 0) continue;
    rule.run();
    return 0;
  }
  return 2;
}
