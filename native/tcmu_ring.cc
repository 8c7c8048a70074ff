#include "tcmu_ring.h"

#include <string.h>

#include <algorithm>

namespace lunette {
namespace {

// The mailbox.
constexpr size_t kMailboxSize = 128;
constexpr size_t kVersionAt = 0;
constexpr size_t kFlagsAt = 2;
constexpr size_t kRingOffsetAt = 4;
constexpr size_t kRingSizeAt = 8;
constexpr size_t kHeadAt = 12;
constexpr size_t kTailAt = 64;

// Entries.
constexpr uint32_t kOpcodeMask = 7;
constexpr uint32_t kPad = 0;
constexpr uint32_t kCommand = 1;
constexpr uint32_t kTaskManagement = 2;
constexpr uint32_t kHeaderSize = 8;
constexpr uint32_t kUserFlagsAt = 7;
constexpr uint32_t kCommandSize = 112;
constexpr uint32_t kIovecsAt = 48;
constexpr uint32_t kIovecSize = 16;
constexpr uint32_t kTaskManagementSize = 32;
constexpr uint32_t kMaxCdb = 260;
constexpr uint32_t kRecordUnknownWords = 3;

uint16_t Load16(const uint8_t* at) {
  uint16_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

uint32_t Load32(const uint8_t* at) {
  uint32_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

uint64_t Load64(const uint8_t* at) {
  uint64_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

void Store16(uint8_t* at, uint16_t value) { memcpy(at, &value, sizeof value); }
void Store32(uint8_t* at, uint32_t value) { memcpy(at, &value, sizeof value); }

uint32_t LoadAcquire(const uint8_t* at) { return __atomic_load_n(reinterpret_cast<const uint32_t*>(at), __ATOMIC_ACQUIRE); }

// Length of a CDB by its first bytes (SPC-4 section 4.2.5); vendor-specific groups are taken for the longest fixed form, as Linux has it.
uint32_t CdbLength(uint8_t opcode, uint8_t additional) {
  static const uint8_t by_group[8] = {6, 10, 10, 12, 16, 12, 10, 10};
  if (opcode == 0x7f) return 8u + additional;
  return by_group[opcode >> 5];
}

}  // namespace

const char* TcmuRing::Check(const uint8_t* base, size_t size) {
  if (size < kMailboxSize) return "the region is smaller than a mailbox";
  if (Load16(base + kVersionAt) != 2) return "the version of the mailbox is not 2";
  if ((Load16(base + kFlagsAt) & kRingOutOfOrder) == 0) return "the kernel cannot complete commands out of order";
  uint64_t offset = Load32(base + kRingOffsetAt);
  uint64_t length = Load32(base + kRingSizeAt);
  if (offset < kMailboxSize || offset % 8 != 0) return "the command ring overlaps the mailbox";
  if (length < 2 * kCommandSize || length % 8 != 0) return "the size of the command ring makes no sense";
  if (offset + length > size) return "the command ring ends behind the region";
  return nullptr;
}

TcmuRing::TcmuRing(uint8_t* base, size_t size) : base_(base), size_(size), slots_(256), fetched_(65536) {
  flags_ = Load16(base + kFlagsAt);
  ring_offset_ = Load32(base + kRingOffsetAt);
  ring_size_ = Load32(base + kRingSizeAt);
  Begin();
}

void TcmuRing::Restart() {
  Begin();
  uint32_t head = LoadAcquire(base_ + kHeadAt);
  if (head < ring_size_) doubtful_ = (head + ring_size_ - tail_) % ring_size_;
  straggler_ = true;
}

void TcmuRing::Begin() {
  tail_ = LoadAcquire(base_ + kTailAt);
  if (tail_ >= ring_size_ || tail_ % 8 != 0) tail_ = 0;
  fetch_ = tail_;
  published_ = tail_;
  first_slot_ = 0;
  slot_count_ = 0;
  std::fill(fetched_.begin(), fetched_.end(), false);
  in_flight_ = 0;
  doubtful_ = 0;
  straggler_ = false;
  reason_ = nullptr;
}

// Nobody but us moves the tail, and the head never passes it: what looks different was set to zero.
bool TcmuRing::WasReset(uint32_t head) const {
  if (LoadAcquire(base_ + kTailAt) != published_) return true;
  uint32_t used = (fetch_ + ring_size_ - published_) % ring_size_;
  uint32_t more = (head + ring_size_ - fetch_) % ring_size_;
  return used + more >= ring_size_;
}

RingState TcmuRing::Break(const char* reason) {
  if (reason_ == nullptr) reason_ = reason;
  return RingState::kBroken;
}

RingState TcmuRing::Fetch(uint32_t* out, size_t capacity, size_t* words, size_t* records) {
  *words = 0;
  *records = 0;
  if (reason_ != nullptr) return RingState::kBroken;
  uint32_t head = LoadAcquire(base_ + kHeadAt);
  if (head >= ring_size_ || head % 8 != 0) return Break("the head is outside of the command ring");
  if (WasReset(head)) return RingState::kReset;
  while (fetch_ != head) {
    uint8_t* entry = base_ + ring_offset_ + fetch_;
    uint32_t word = Load32(entry);
    uint32_t opcode = word & kOpcodeMask;
    uint32_t length = word & ~kOpcodeMask;
    uint32_t published = (head + ring_size_ - fetch_) % ring_size_;
    if (length < kHeaderSize || length > published || length > ring_size_ - fetch_) {
      return Break("an entry ends outside of what the kernel has published");
    }
    size_t taken = 0;
    switch (opcode) {
      case kPad:
        PushSlot({length, false});
        break;
      case kTaskManagement:
        if (!CopyTaskManagement(entry, length, out + *words, capacity - *words, capacity, &taken)) return RingState::kGood;
        PushSlot({length, false});
        break;
      case kCommand: {
        if (length < kCommandSize) return Break("an entry is too short for a command");
        uint16_t id = Load16(entry + 4);
        if (fetched_[id]) return Break("an id came again before its command was completed");
        if (!CopyCommand(fetch_, length, out + *words, capacity - *words, capacity, &taken)) return RingState::kGood;
        fetched_[id] = true;
        in_flight_++;
        if (doubtful_ == 0) straggler_ = false;
        PushSlot({length, true});
        break;
      }
      default:
        // Of a later kernel. The flag is the answer (tcmu-design.rst): the entry may have no room for another, and is passed over as it is.
        if (capacity - *words < kRecordUnknownWords) return RingState::kGood;
        taken = kRecordUnknownWords;
        out[*words + kRecordWords] = kRecordUnknownWords;
        out[*words + kRecordKind] = kRecordUnknown;
        out[*words + kRecordId] = Load16(entry + 4);
        entry[kUserFlagsAt] |= kCompleteUnknown;
        PushSlot({length, false});
    }
    if (taken > 0) {
      *words += taken;
      (*records)++;
    }
    fetch_ = (fetch_ + length) % ring_size_;
    doubtful_ -= std::min(doubtful_, length);
  }
  // Padding and notices at the tail have nobody to complete them.
  SkipSilentSlots();
  PublishTail();
  return RingState::kGood;
}

// Returns false when the record does not fit into the room that is left.
bool TcmuRing::CopyCommand(uint32_t at, uint32_t length, uint32_t* out, size_t room, size_t capacity, size_t* words) {
  const uint8_t* entry = base_ + ring_offset_ + at;
  const size_t fixed = kRecordCdb + 4;
  if (room < fixed) return false;
  memset(out, 0, fixed * sizeof *out);
  out[kRecordWords] = fixed;
  out[kRecordKind] = kRecordMalformed;
  out[kRecordId] = Load16(entry + 4);
  *words = fixed;

  uint32_t count = Load32(entry + 8);
  uint32_t bidirectional = Load32(entry + 12);
  uint64_t cdb_at = Load64(entry + 24);
  uint64_t entry_at = static_cast<uint64_t>(ring_offset_) + at;
  uint64_t iovecs = static_cast<uint64_t>(count) + bidirectional;
  if (iovecs > (length - kIovecsAt) / kIovecSize) return true;
  uint64_t entry_end = entry_at + length;
  // Compared without a sum of what the entry says: that could go round.
  if (cdb_at < entry_at + kIovecsAt + iovecs * kIovecSize || cdb_at > entry_end - 8) return true;
  const uint8_t* cdb = base_ + cdb_at;
  uint32_t cdb_length = CdbLength(cdb[0], cdb[7]);
  if (cdb_length > kMaxCdb || cdb_length > entry_end - cdb_at) return true;

  uint32_t cdb_words = std::max(4u, (cdb_length + 3) / 4);
  size_t needed = kRecordCdb + cdb_words + 2 * static_cast<size_t>(iovecs);
  // A list that no batch has room for would be waited for without an end.
  if (needed > capacity) return true;
  if (needed > room) return false;
  uint64_t data_at = static_cast<uint64_t>(ring_offset_) + ring_size_;
  uint64_t bytes = 0;
  uint32_t* iovec = out + kRecordCdb + cdb_words;
  for (uint64_t i = 0; i < iovecs; i++, iovec += 2) {
    const uint8_t* from = entry + kIovecsAt + i * kIovecSize;
    uint64_t start = Load64(from);
    uint64_t size = Load64(from + 8);
    if (start < data_at || start > size_ || size > size_ - start || start > UINT32_MAX || size > UINT32_MAX) return true;
    iovec[0] = static_cast<uint32_t>(start);
    iovec[1] = static_cast<uint32_t>(size);
    if (i < count) bytes += size;
  }
  if (bytes > UINT32_MAX) return true;
  memset(out + kRecordCdb, 0, cdb_words * sizeof *out);
  memcpy(out + kRecordCdb, cdb, cdb_length);
  out[kRecordWords] = static_cast<uint32_t>(needed);
  out[kRecordKind] = (doubtful_ > 0 || straggler_ ? kRecordDoubtful : kRecordCommand) | cdb_length << 16;
  out[kRecordIovecs] = count;
  out[kRecordBidirectional] = bidirectional;
  out[kRecordBytes] = static_cast<uint32_t>(bytes);
  *words = needed;
  return true;
}

bool TcmuRing::CopyTaskManagement(const uint8_t* entry, uint32_t length, uint32_t* out, size_t room, size_t capacity,
                                  size_t* words) {
  uint32_t function = length >= kTaskManagementSize ? entry[8] : 0;
  uint32_t count = length >= kTaskManagementSize ? Load32(entry + 12) : 0;
  count = length < kTaskManagementSize ? 0 : std::min(count, (length - kTaskManagementSize) / 2);
  // It is a hint: ids that no batch has room for are left out.
  count = static_cast<uint32_t>(std::min<size_t>(count, capacity - 4));
  if (4 + count > room) return false;
  out[kRecordWords] = 4 + count;
  out[kRecordKind] = kRecordTaskManagement | function << 16;
  out[kRecordId] = 0;
  out[kRecordIovecs] = count;
  for (uint32_t i = 0; i < count; i++) out[4 + i] = Load16(entry + kTaskManagementSize + 2 * i);
  *words = 4 + count;
  return true;
}

RingState TcmuRing::Complete(const uint32_t* completions, size_t words) {
  if (reason_ != nullptr) return RingState::kBroken;
  if (WasReset(LoadAcquire(base_ + kHeadAt))) return RingState::kReset;
  for (size_t at = 0; at < words;) {
    if (words - at < kCompletionWords) return Break("a completion is cut off");
    const uint32_t* completion = completions + at;
    uint32_t id = completion[0];
    bool sense = completion[3] != 0;
    at += kCompletionWords + (sense ? kSenseBytes / 4 : 0);
    if (at > words) return Break("a completion is cut off");
    // The kernel would take the whole device for broken.
    if (id > UINT16_MAX || !fetched_[id]) return Break("a command was completed that is not in flight");
    SkipSilentSlots();
    uint8_t* entry = base_ + ring_offset_ + tail_;
    Store16(entry + 4, static_cast<uint16_t>(id));
    entry[7] = static_cast<uint8_t>(completion[1] >> 8);
    entry[8] = static_cast<uint8_t>(completion[1]);
    Store32(entry + 12, completion[2]);
    if (sense) memcpy(entry + 16, completion + kCompletionWords, kSenseBytes);
    const Slot& slot = slots_[first_slot_];
    tail_ = (tail_ + slot.length) % ring_size_;
    first_slot_ = (first_slot_ + 1) % slots_.size();
    slot_count_--;
    fetched_[id] = false;
    in_flight_--;
  }
  SkipSilentSlots();
  PublishTail();
  return RingState::kGood;
}

void TcmuRing::SkipSilentSlots() {
  while (slot_count_ > 0 && !slots_[first_slot_].command) {
    tail_ = (tail_ + slots_[first_slot_].length) % ring_size_;
    first_slot_ = (first_slot_ + 1) % slots_.size();
    slot_count_--;
  }
}

void TcmuRing::PublishTail() {
  if (tail_ == published_) return;
  published_ = tail_;
  __atomic_store_n(reinterpret_cast<uint32_t*>(base_ + kTailAt), tail_, __ATOMIC_RELEASE);
}

void TcmuRing::PushSlot(Slot slot) {
  if (slot_count_ == slots_.size()) {
    std::rotate(slots_.begin(), slots_.begin() + static_cast<std::ptrdiff_t>(first_slot_), slots_.end());
    first_slot_ = 0;
    slots_.resize(2 * slots_.size());
  }
  slots_[(first_slot_ + slot_count_) % slots_.size()] = slot;
  slot_count_++;
}

}  // namespace lunette
