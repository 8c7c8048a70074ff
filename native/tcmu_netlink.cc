#include "tcmu_netlink.h"

#include <errno.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "genl_message.h"

namespace lunette {
namespace {

constexpr uint8_t kFamilyVersion = 2;
constexpr size_t kReceiveBytes = 64 * 1024;
constexpr int kBufferBytes = 1024 * 1024;
constexpr int kHandshakeMs = 5000;
// Longest wait, and that of a thread that nothing can wake, because the process had no descriptor left.
constexpr int kLongestWaitMs = 60000;
constexpr int kUnwakableWaitMs = 100;

int SendBytes(int fd, const std::vector<uint8_t>& bytes) {
  for (;;) {
    ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent >= 0) return 0;
    if (errno != EINTR) return -errno;
  }
}

// Waits for the answer to a request of the handshake. 0 for an acknowledgement or a reply, which `reply` gets.
int Await(int fd, uint32_t sequence, std::vector<uint8_t>* reply) {
  std::vector<uint8_t> buffer(kReceiveBytes);
  for (;;) {
    pollfd waiting = {fd, POLLIN, 0};
    int ready = poll(&waiting, 1, kHandshakeMs);
    if (ready == 0) return -ETIMEDOUT;
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return -errno;
    ssize_t length = recv(fd, buffer.data(), buffer.size(), 0);
    if (length < 0 && errno == EINTR) continue;
    if (length < 0) return -errno;
    size_t at = 0;
    NetlinkView view;
    while (NextMessage(buffer.data(), static_cast<size_t>(length), &at, &view)) {
      if (view.header.sequence != sequence) continue;
      if (view.header.type == NLMSG_ERROR) {
        int number = 0;
        if (view.body_length >= sizeof number) memcpy(&number, view.body, sizeof number);
        return number;
      }
      if (reply != nullptr) reply->assign(view.body, view.body + view.body_length);
      return 0;
    }
  }
}

// The id of the group "config" in the reply to CTRL_CMD_GETFAMILY.
bool FindGroup(const uint8_t* attributes, size_t length, uint32_t* id) {
  const uint8_t* groups;
  size_t left;
  if (!FindAttribute(attributes, length, CTRL_ATTR_MCAST_GROUPS, &groups, &left)) return false;
  // An array: attributes with the index for a type, from 1.
  for (uint16_t index = 1; index < 64; index++) {
    const uint8_t* group;
    size_t size;
    if (!FindAttribute(groups, left, index, &group, &size)) return false;
    const uint8_t* name;
    size_t name_length;
    if (!FindAttribute(group, size, CTRL_ATTR_MCAST_GRP_NAME, &name, &name_length)) continue;
    if (name_length != sizeof "config" || memcmp(name, "config", sizeof "config") != 0) continue;
    return FindAttribute32(group, size, CTRL_ATTR_MCAST_GRP_ID, id);
  }
  return false;
}

int Handshake(int fd, uint16_t* family) {
  GenlMessage question(GENL_ID_CTRL, NLM_F_REQUEST, 1, CTRL_CMD_GETFAMILY, 1);
  question.PutText(CTRL_ATTR_FAMILY_NAME, "TCM-USER");
  int result = SendBytes(fd, question.bytes());
  std::vector<uint8_t> reply;
  if (result == 0) result = Await(fd, 1, &reply);
  if (result != 0) return result;
  if (reply.size() < kGenlHeaderSize) return -EPROTO;
  const uint8_t* attributes = reply.data() + kGenlHeaderSize;
  size_t length = reply.size() - kGenlHeaderSize;
  const uint8_t* id;
  size_t id_length;
  if (!FindAttribute(attributes, length, CTRL_ATTR_FAMILY_ID, &id, &id_length) || id_length < 2) return -EPROTO;
  memcpy(family, id, 2);
  uint32_t group;
  if (!FindGroup(attributes, length, &group)) return -EPROTO;
  if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) != 0) return -errno;
  GenlMessage features(*family, NLM_F_REQUEST | NLM_F_ACK, 2, kTcmuSetFeatures, kFamilyVersion);
  features.Put8(kTcmuReplySupported, 1);
  result = SendBytes(fd, features.bytes());
  return result != 0 ? result : Await(fd, 2, nullptr);
}

}  // namespace

int TcmuNetlink::Open(int* fd, uint16_t* family) {
  int opened = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
  if (opened < 0) return -errno;
  // A burst of events while the thread does not run: more room makes losing them rarer. Without privilege it stays as it is.
  int size = kBufferBytes;
  setsockopt(opened, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
  sockaddr_nl address = {};
  address.nl_family = AF_NETLINK;
  int result = bind(opened, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ? -errno : Handshake(opened, family);
  if (result != 0) {
    close(opened);
    return result;
  }
  *fd = opened;
  return 0;
}

TcmuNetlink::TcmuNetlink(int fd, uint16_t family, int timeout_ms, Notify notify, void* context)
    : fd_(fd), family_(family), timeout_ms_(timeout_ms), notify_(notify), context_(context) {
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  // Signals are the main thread's.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { Work(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TcmuNetlink::~TcmuNetlink() {
  Stop();
  close(fd_);
  if (wake_fd_ >= 0) close(wake_fd_);
}

void TcmuNetlink::Stop() {
  {
    std::lock_guard<std::mutex> hold(lock_);
    stopping_ = true;
  }
  uint64_t one = 1;
  if (write(wake_fd_, &one, sizeof one) < 0) {
    // The counter is full: the thread is awake anyway.
  }
  if (thread_.joinable()) thread_.join();
}

std::vector<TcmuEvent> TcmuNetlink::TakeEvents() {
  std::lock_guard<std::mutex> hold(lock_);
  std::vector<TcmuEvent> taken;
  taken.swap(events_);
  return taken;
}

uint8_t TcmuNetlink::TakePending(uint32_t device_id, uint32_t ticket) {
  std::lock_guard<std::mutex> hold(lock_);
  auto found = pending_.find(device_id);
  if (found == pending_.end() || found->second.ticket != ticket) return 0;
  uint8_t event = found->second.event;
  pending_.erase(found);
  return event;
}

bool TcmuNetlink::Answer(uint32_t device_id, uint32_t ticket, int status) {
  uint8_t event = TakePending(device_id, ticket);
  return event != 0 && Send(event + kTcmuDone, device_id, status) == 0;
}

bool TcmuNetlink::Leave(uint32_t device_id, uint32_t ticket) { return TakePending(device_id, ticket) != 0; }

int TcmuNetlink::AnswerMissed(uint8_t event, uint32_t device_id, int status) {
  if (event < kTcmuAdded || event > kTcmuReconfigured) return -EINVAL;
  {
    std::lock_guard<std::mutex> hold(lock_);
    if (pending_.count(device_id) > 0) return -EBUSY;
  }
  return Send(event + kTcmuDone, device_id, status);
}

int TcmuNetlink::SetFeatures(bool answers) {
  uint32_t sequence;
  {
    std::lock_guard<std::mutex> hold(lock_);
    sequence = ++sequence_;
  }
  GenlMessage message(family_, NLM_F_REQUEST, sequence, kTcmuSetFeatures, kFamilyVersion);
  message.Put8(kTcmuReplySupported, answers ? 1 : 0);
  return SendBytes(fd_, message.bytes());
}

int TcmuNetlink::Send(uint8_t command, uint32_t device_id, int status) {
  uint32_t sequence;
  {
    std::lock_guard<std::mutex> hold(lock_);
    sequence = ++sequence_;
  }
  GenlMessage message(family_, NLM_F_REQUEST, sequence, command, kFamilyVersion);
  message.Put32(kTcmuStatus, static_cast<uint32_t>(status));
  message.Put32(kTcmuDeviceId, device_id);
  return SendBytes(fd_, message.bytes());
}

void TcmuNetlink::Work() {
  for (;;) {
    pollfd waiting[2] = {{fd_, POLLIN, 0}, {wake_fd_, POLLIN, 0}};
    int ready = poll(waiting, 2, WaitMs());
    {
      std::lock_guard<std::mutex> hold(lock_);
      if (stopping_) return;
    }
    if (ready < 0 && errno != EINTR) {
      Push({TcmuEvent::kFailed, 0, -errno, 0, {}});
      return;
    }
    if (ready > 0 && waiting[0].revents != 0 && !Receive()) return;
    Expire();
  }
}

bool TcmuNetlink::Receive() {
  uint8_t buffer[kReceiveBytes / 4];
  ssize_t length = recv(fd_, buffer, sizeof buffer, MSG_DONTWAIT);
  if (length > 0) {
    Take(buffer, static_cast<size_t>(length));
    return true;
  }
  if (length < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  if (length < 0 && errno == ENOBUFS) {
    Push({TcmuEvent::kOverflow, 0, 0, 0, {}});
    return true;
  }
  Push({TcmuEvent::kFailed, 0, length < 0 ? -errno : -EPIPE, 0, {}});
  return false;
}

void TcmuNetlink::Take(const uint8_t* data, size_t length) {
  size_t at = 0;
  NetlinkView view;
  while (NextMessage(data, length, &at, &view)) {
    if (view.header.type == NLMSG_ERROR) {
      int number = 0;
      if (view.body_length >= sizeof number) memcpy(&number, view.body, sizeof number);
      if (number != 0) Push({TcmuEvent::kRefused, 0, number, 0, {}});
      continue;
    }
    if (view.header.type != family_ || view.body_length < kGenlHeaderSize) continue;
    uint8_t command = view.body[0];
    uint32_t device_id;
    bool known = command >= kTcmuAdded && command <= kTcmuReconfigured;
    if (!known || !FindAttribute32(view.body + kGenlHeaderSize, view.body_length - kGenlHeaderSize, kTcmuDeviceId, &device_id)) {
      continue;
    }
    uint32_t ticket;
    {
      std::lock_guard<std::mutex> hold(lock_);
      ticket = ++last_ticket_;
      pending_[device_id] = {command, ticket, Clock::now() + std::chrono::milliseconds(timeout_ms_)};
    }
    Push({TcmuEvent::kDevice, device_id, 0, ticket, std::vector<uint8_t>(view.body, view.body + view.body_length)});
  }
}

void TcmuNetlink::Expire() {
  Clock::time_point now = Clock::now();
  std::vector<std::pair<uint32_t, uint32_t>> late;
  {
    std::lock_guard<std::mutex> hold(lock_);
    for (const auto& entry : pending_) {
      if (entry.second.deadline <= now) late.emplace_back(entry.first, entry.second.ticket);
    }
  }
  for (auto [device_id, ticket] : late) {
    // Whoever is first, this or the answer, has it.
    if (Answer(device_id, ticket, -ETIMEDOUT)) Push({TcmuEvent::kExpired, device_id, 0, ticket, {}});
  }
}

// Until the next event is late; -1: nothing waits.
int TcmuNetlink::WaitMs() {
  std::lock_guard<std::mutex> hold(lock_);
  const int longest = wake_fd_ < 0 ? kUnwakableWaitMs : kLongestWaitMs;
  if (pending_.empty()) return wake_fd_ < 0 ? longest : -1;
  Clock::time_point first = Clock::time_point::max();
  for (const auto& entry : pending_) first = std::min(first, entry.second.deadline);
  int64_t left = std::chrono::duration_cast<std::chrono::milliseconds>(first - Clock::now()).count() + 1;
  return static_cast<int>(std::max<int64_t>(0, std::min<int64_t>(left, longest)));
}

void TcmuNetlink::Push(TcmuEvent event) {
  {
    std::lock_guard<std::mutex> hold(lock_);
    events_.push_back(std::move(event));
  }
  notify_(context_);
}

}  // namespace lunette
