// The kernel's side of a TCMU ring, as drivers/target/target_core_user.c behaves: for tests without that kernel.
#pragma once

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace mock {

struct Extent {
  uint64_t offset;
  uint64_t length;
};

struct Completion {
  uint16_t id;
  uint8_t status;
  uint8_t flags;
  uint32_t read_length;
  std::vector<uint8_t> sense;
};

class Kernel {
 public:
  static constexpr uint32_t kRingOffset = 128;

  Kernel(uint8_t* base, size_t size, uint32_t ring_size, uint16_t flags = 15) : base_(base), size_(size), ring_size_(ring_size) {
    memset(base, 0, kRingOffset + ring_size);
    Put16(base, 2);
    Put16(base + 2, flags);
    Put32(base + 4, kRingOffset);
    Put32(base + 8, ring_size);
  }

  uint64_t data_offset() const { return kRingOffset + ring_size_; }
  uint32_t ring_size() const { return ring_size_; }
  bool broken() const { return broken_; }
  size_t in_flight() const { return ids_.size(); }
  // Of the next command.
  uint16_t next_id() const { return LowestFree(); }

  // Queues a command. Returns its id, or 0 when there is no room for it now.
  uint16_t Submit(const std::vector<uint8_t>& cdb, const std::vector<Extent>& data, uint32_t bidirectional = 0) {
    size_t base_length = std::max<size_t>(48 + 16 * data.size(), 112);
    uint32_t length = static_cast<uint32_t>(base_length + ((cdb.size() + 7) & ~static_cast<size_t>(7)));
    if (!MakeRoom(length)) return 0;
    uint16_t id = LowestFree();
    uint8_t* entry = base_ + kRingOffset + head_;
    memset(entry, 0, length);
    Put32(entry, length | 1);
    Put16(entry + 4, id);
    Put32(entry + 8, static_cast<uint32_t>(data.size()) - bidirectional);
    Put32(entry + 12, bidirectional);
    Put64(entry + 24, kRingOffset + head_ + base_length);
    for (size_t i = 0; i < data.size(); i++) {
      Put64(entry + 48 + 16 * i, data[i].offset);
      Put64(entry + 56 + 16 * i, data[i].length);
    }
    memcpy(entry + base_length, cdb.data(), cdb.size());
    ids_.insert(id);
    Publish(length);
    return id;
  }

  bool SubmitTaskManagement(uint8_t function, const std::vector<uint16_t>& ids) {
    uint32_t length = static_cast<uint32_t>((32 + 2 * ids.size() + 7) & ~static_cast<size_t>(7));
    if (!MakeRoom(length)) return false;
    uint8_t* entry = base_ + kRingOffset + head_;
    memset(entry, 0, length);
    Put32(entry, length | 2);
    entry[8] = function;
    Put32(entry + 12, static_cast<uint32_t>(ids.size()));
    for (size_t i = 0; i < ids.size(); i++) Put16(entry + 32 + 2 * i, ids[i]);
    Publish(length);
    return true;
  }

  // Puts an entry of the caller's bytes into the ring; its id counts as in flight. For what a later or broken kernel might do.
  bool SubmitRaw(const std::vector<uint8_t>& bytes, uint16_t id) {
    uint32_t length = static_cast<uint32_t>(bytes.size());
    if (!MakeRoom(length)) return false;
    memcpy(base_ + kRingOffset + head_, bytes.data(), length);
    if (id != 0) ids_.insert(id);
    Publish(length);
    return true;
  }

  // What write(2) to the device does.
  std::vector<Completion> HandleCompletions() {
    std::vector<Completion> done;
    uint32_t tail = __atomic_load_n(reinterpret_cast<uint32_t*>(base_ + 64), __ATOMIC_ACQUIRE);
    while (cleaned_ != tail && !broken_) {
      const uint8_t* entry = base_ + kRingOffset + cleaned_;
      uint32_t word = Get32(entry);
      uint32_t opcode = word & 7;
      if (opcode != 0 && opcode != 2) {
        uint16_t id;
        memcpy(&id, entry + 4, sizeof id);
        if (ids_.erase(id) == 0) {
          // "cmd_id not found, ring is broken"
          broken_ = true;
          break;
        }
        Completion completion = {id, entry[8], entry[7], Get32(entry + 12), {}};
        // UNKNOWN_OP: the kernel makes the status itself, and reads no response.
        if ((completion.flags & 1) != 0) completion = {id, 2, completion.flags, 0, {}};
        else if (completion.status == 2) completion.sense.assign(entry + 16, entry + 112);
        done.push_back(completion);
      }
      cleaned_ = (cleaned_ + (word & ~7u)) % ring_size_;
    }
    return done;
  }

  // action/reset_ring
  void Reset() {
    ids_.clear();
    head_ = 0;
    cleaned_ = 0;
    broken_ = false;
    __atomic_store_n(reinterpret_cast<uint32_t*>(base_ + 64), 0, __ATOMIC_RELEASE);
    __atomic_store_n(reinterpret_cast<uint32_t*>(base_ + 12), 0, __ATOMIC_RELEASE);
  }

 private:
  static void Put16(uint8_t* at, uint16_t value) { memcpy(at, &value, sizeof value); }
  static void Put32(uint8_t* at, uint32_t value) { memcpy(at, &value, sizeof value); }
  static void Put64(uint8_t* at, uint64_t value) { memcpy(at, &value, sizeof value); }
  static uint32_t Get32(const uint8_t* at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
  }

  // Entries do not go round the end: what is left there is padding. One byte stays free.
  bool MakeRoom(uint32_t length) {
    uint32_t to_end = ring_size_ - head_;
    uint32_t used = (head_ + ring_size_ - cleaned_) % ring_size_;
    uint32_t needed = length <= to_end ? length : length + to_end;
    if (used + needed >= ring_size_) return false;
    if (length > to_end) {
      uint8_t* entry = base_ + kRingOffset + head_;
      Put32(entry, to_end);
      Put32(entry + 4, 0);
      Publish(to_end);
    }
    return true;
  }

  void Publish(uint32_t length) {
    head_ = (head_ + length) % ring_size_;
    __atomic_store_n(reinterpret_cast<uint32_t*>(base_ + 12), head_, __ATOMIC_RELEASE);
  }

  uint16_t LowestFree() const {
    uint16_t id = 1;
    for (uint16_t taken : ids_) {
      if (taken != id) break;
      id++;
    }
    return id;
  }

  uint8_t* base_;
  size_t size_;
  uint32_t ring_size_;
  uint32_t head_ = 0;
  uint32_t cleaned_ = 0;
  std::set<uint16_t> ids_;
  bool broken_ = false;
};

}  // namespace mock
