// The command ring that a TCMU device shares with the kernel (include/uapi/linux/target_core_user.h). Knows neither JavaScript nor
// devices: it works on any memory that is laid out like one, and on one thread.
//
// What the kernel publishes is copied out as records of words before anything completes it, because a response is written over a request.
// Nothing in the ring is believed: what points outside of its entry or of the data area comes out as malformed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lunette {

// Bits of the mailbox's flags.
constexpr uint32_t kRingOutOfOrder = 1;
constexpr uint32_t kRingReadLength = 2;
constexpr uint32_t kRingTaskManagement = 4;

// What a record is about: word 1, low byte.
constexpr uint32_t kRecordCommand = 1;
constexpr uint32_t kRecordTaskManagement = 2;
// A command whose entry points outside of what it may: it has to be completed, but there are no CDB and no data.
constexpr uint32_t kRecordMalformed = 3;
// An entry of an opcode that is not known here. Nothing is to be done about it.
constexpr uint32_t kRecordUnknown = 4;
// A command that was in the ring, or on its way into it, before a reset was noticed: what it takes may have been written over.
constexpr uint32_t kRecordDoubtful = 5;

// A command's record: words in the record | kind and CDB length << 16 | command id | data iovecs | bidirectional iovecs | bytes in the
// data iovecs | CDB, padded with zeros to 16 bytes or a multiple of 4 | offset in the region and length of each iovec.
// An entry of an opcode that is not known: words | kind | its id. It is marked and completed already.
// Task management: words | kind and function << 16 | 0 | ids | the ids, a word each.
constexpr size_t kRecordWords = 0;
constexpr size_t kRecordKind = 1;
constexpr size_t kRecordId = 2;
constexpr size_t kRecordIovecs = 3;
constexpr size_t kRecordBidirectional = 4;
constexpr size_t kRecordBytes = 5;
constexpr size_t kRecordCdb = 6;

// A completion: id | status and flags << 8 | read length | 1 when sense follows; then 96 bytes of sense.
constexpr size_t kCompletionWords = 4;
constexpr size_t kSenseBytes = 96;
constexpr uint32_t kCompleteUnknown = 1;
constexpr uint32_t kCompleteReadLength = 2;

enum class RingState {
  kGood,
  // The kernel has emptied the ring (action/reset_ring): what was fetched before is void.
  kReset,
  // The ring makes no sense any more, or a caller completes what it has not fetched.
  kBroken,
};

class TcmuRing {
 public:
  // Why the memory is no ring that this code can serve; nullptr when it is one.
  static const char* Check(const uint8_t* base, size_t size);

  // The memory must have passed Check, and outlive the ring.
  TcmuRing(uint8_t* base, size_t size);

  // Copies out what the kernel has published, as many records as fit. `words` is set to the words in use, `records` to their number.
  RingState Fetch(uint32_t* out, size_t capacity, size_t* words, size_t* records);

  // Puts completions into the ring, in their order, and shows them to the kernel.
  RingState Complete(const uint32_t* completions, size_t words);

  // Begins anew after a reset: whoever fetched must have let go of all data by then. The kernel gave that data's pages to new commands
  // meanwhile: those that are in the ring already are doubtful, and the next one, whose data the kernel may be copying at this moment.
  void Restart();

  // The mailbox's flags.
  uint32_t flags() const { return flags_; }
  size_t in_flight() const { return in_flight_; }
  // Why the state is kBroken.
  const char* reason() const { return reason_; }

 private:
  void Begin();

  struct Slot {
    uint32_t length;
    bool command;
  };

  // A reset right after the tail came round to 0, with as much fetched since as the kernel has published anew, is not seen here: the ids
  // that come again show it, or the kernel does when it misses one.
  bool WasReset(uint32_t head) const;
  RingState Break(const char* reason);
  bool CopyCommand(uint32_t at, uint32_t length, uint32_t* out, size_t room, size_t capacity, size_t* words);
  bool CopyTaskManagement(const uint8_t* entry, uint32_t length, uint32_t* out, size_t room, size_t capacity, size_t* words);
  void SkipSilentSlots();
  void PublishTail();
  void PushSlot(Slot slot);

  uint8_t* const base_;
  const size_t size_;
  uint32_t flags_;
  uint32_t ring_offset_;
  uint32_t ring_size_;
  // Where the next entry is fetched; where the next completion goes; what the kernel was last shown. Offsets in the ring.
  uint32_t fetch_ = 0;
  uint32_t tail_ = 0;
  uint32_t published_ = 0;
  // Bytes from fetch_ on that hold doubtful commands.
  uint32_t doubtful_ = 0;
  // The first command behind those is doubtful, too: the kernel copies one at a time, and shows it afterwards.
  bool straggler_ = false;
  // Slots between tail_ and fetch_: a circle that grows.
  std::vector<Slot> slots_;
  size_t first_slot_ = 0;
  size_t slot_count_ = 0;
  // By command id.
  std::vector<bool> fetched_;
  size_t in_flight_ = 0;
  const char* reason_ = nullptr;
};

}  // namespace lunette
