// Rules of native/tcmu_ring.cc and native/uio_device.cc, driven by the mock kernel. Built and run by test/unit/native/ring.test.ts, with
// sanitizers. Usage: ring_test RULE SEED
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "../../../native/uio_device.h"
#include "mock_kernel.h"

using namespace lunette;

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                \
    }                                                                         \
  } while (0)

namespace {

std::mt19937 random_source;
uint32_t Below(uint32_t limit) { return std::uniform_int_distribution<uint32_t>(0, limit - 1)(random_source); }

// A region that ends at a page that may not be touched.
class Region {
 public:
  explicit Region(size_t size) : size_(size) {
    whole_ = static_cast<uint8_t*>(mmap(nullptr, size + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(whole_ != MAP_FAILED);
    CHECK(mprotect(whole_ + size, 4096, PROT_NONE) == 0);
  }
  ~Region() { munmap(whole_, size_ + 4096); }
  uint8_t* base() { return whole_; }
  size_t size() const { return size_; }

 private:
  uint8_t* whole_;
  size_t size_;
};

struct Sent {
  std::vector<uint8_t> cdb;
  std::vector<mock::Extent> data;
  uint32_t bidirectional;
};

Sent RandomCommand(uint64_t data_offset, size_t size) {
  static const uint8_t opcodes[] = {0x00, 0x28, 0x2a, 0x88, 0x8a, 0xa8, 0xc1, 0x7f};
  Sent sent;
  uint8_t opcode = opcodes[Below(sizeof opcodes)];
  size_t length = opcode == 0x7f ? 32 : opcode < 0x20 ? 6 : opcode >= 0xc0 || opcode < 0x60 ? 10 : opcode < 0xa0 ? 16 : 12;
  for (size_t i = 0; i < length; i++) sent.cdb.push_back(static_cast<uint8_t>(Below(256)));
  sent.cdb[0] = opcode;
  if (opcode == 0x7f) sent.cdb[7] = 24;
  uint32_t extents = Below(3) == 0 ? 0 : Below(12);
  for (uint32_t i = 0; i < extents; i++) {
    uint64_t start = data_offset + Below(static_cast<uint32_t>(size - data_offset));
    sent.data.push_back({start, Below(static_cast<uint32_t>(size - start) + 1)});
  }
  sent.bidirectional = extents > 0 && Below(8) == 0 ? 1 + Below(extents) : 0;
  return sent;
}

void CheckRecord(const uint32_t* record, const Sent& sent) {
  CHECK((record[kRecordKind] & 0xffff) == kRecordCommand);
  CHECK(record[kRecordKind] >> 16 == sent.cdb.size());
  CHECK(memcmp(record + kRecordCdb, sent.cdb.data(), sent.cdb.size()) == 0);
  CHECK(record[kRecordIovecs] + record[kRecordBidirectional] == sent.data.size());
  CHECK(record[kRecordBidirectional] == sent.bidirectional);
  const uint32_t* iovec = record + kRecordCdb + std::max<size_t>(4, (sent.cdb.size() + 3) / 4);
  uint64_t bytes = 0;
  for (size_t i = 0; i < sent.data.size(); i++, iovec += 2) {
    CHECK(iovec[0] == sent.data[i].offset && iovec[1] == sent.data[i].length);
    if (i < record[kRecordIovecs]) bytes += iovec[1];
  }
  CHECK(bytes == record[kRecordBytes]);
}

void AddCompletion(std::vector<uint32_t>* words, uint16_t id, uint8_t status, uint32_t read_length) {
  words->push_back(id);
  words->push_back(status | (read_length > 0 ? kCompleteReadLength << 8 : 0));
  words->push_back(read_length);
  words->push_back(status == 2 ? 1 : 0);
  if (status == 2) {
    for (uint32_t i = 0; i < kSenseBytes / 4; i++) words->push_back(id * 1000u + i);
  }
}

// Every command comes out as it was sent and is completed once, in any order, over many rounds of a small ring.
void EveryCommandOnce() {
  Region region(64 * 1024);
  mock::Kernel kernel(region.base(), region.size(), 4096 + 8 * Below(200));
  CHECK(TcmuRing::Check(region.base(), region.size()) == nullptr);
  TcmuRing ring(region.base(), region.size());
  std::map<uint16_t, Sent> sent;
  std::map<uint16_t, std::pair<uint8_t, uint32_t>> expected;
  std::vector<uint16_t> fetched;
  size_t notices = 0;
  size_t seen_notices = 0;
  size_t completed = 0;
  // A batch of any size that takes the longest record.
  std::vector<uint32_t> batch(100 + Below(400));
  for (int round = 0; round < 20000; round++) {
    switch (Below(4)) {
      case 0:
      case 1: {
        Sent command = RandomCommand(kernel.data_offset(), region.size());
        uint16_t id = kernel.Submit(command.cdb, command.data, command.bidirectional);
        if (id != 0) sent[id] = command;
        break;
      }
      case 2: {
        if (Below(10) == 0 && kernel.SubmitTaskManagement(1, {1, 2, 3})) notices++;
        size_t words;
        size_t records;
        CHECK(ring.Fetch(batch.data(), batch.size(), &words, &records) == RingState::kGood);
        const uint32_t* record = batch.data();
        for (size_t i = 0; i < records; i++, record += record[kRecordWords]) {
          if ((record[kRecordKind] & 0xffff) == kRecordTaskManagement) {
            CHECK(record[kRecordIovecs] == 3 && record[4] == 1 && record[5] == 2 && record[6] == 3);
            seen_notices++;
            continue;
          }
          uint16_t id = static_cast<uint16_t>(record[kRecordId]);
          CheckRecord(record, sent.at(id));
          fetched.push_back(id);
        }
        CHECK(record == batch.data() + words);
        break;
      }
      default: {
        std::vector<uint32_t> words;
        for (uint32_t count = Below(6); count > 0 && !fetched.empty(); count--) {
          size_t which = Below(static_cast<uint32_t>(fetched.size()));
          uint16_t id = fetched[which];
          fetched.erase(fetched.begin() + static_cast<std::ptrdiff_t>(which));
          static const uint8_t statuses[] = {0, 0, 0, 2, 8};
          uint8_t status = statuses[Below(5)];
          uint32_t read_length = status == 0 ? Below(2) * Below(1000) : 0;
          expected[id] = {status, read_length};
          AddCompletion(&words, id, status, read_length);
        }
        CHECK(ring.Complete(words.data(), words.size()) == RingState::kGood);
        for (const mock::Completion& done : kernel.HandleCompletions()) {
          auto found = expected.find(done.id);
          CHECK(found != expected.end());
          CHECK(done.status == found->second.first && done.read_length == found->second.second);
          CHECK(done.flags == (done.read_length > 0 ? kCompleteReadLength : 0));
          for (uint32_t i = 0; i < done.sense.size() / 4; i++) {
            uint32_t value;
            memcpy(&value, &done.sense[4 * i], 4);
            CHECK(value == done.id * 1000u + i);
          }
          expected.erase(found);
          completed++;
        }
        CHECK(!kernel.broken());
        CHECK(expected.empty());
      }
    }
  }
  CHECK(completed > 1000);
  CHECK(seen_notices > 0 && seen_notices <= notices);
  CHECK(ring.in_flight() == fetched.size());
}

// Two threads: the kernel publishes while commands are fetched and completed.
void TwoThreads() {
  Region region(256 * 1024);
  mock::Kernel kernel(region.base(), region.size(), 16384);
  TcmuRing ring(region.base(), region.size());
  const size_t total = 20000;
  std::atomic<bool> stop{false};
  std::atomic<size_t> kicks{0};
  std::thread consumer([&] {
    std::vector<uint32_t> batch(4096);
    std::vector<uint32_t> held;
    while (!stop.load(std::memory_order_relaxed)) {
      size_t words;
      size_t records;
      CHECK(ring.Fetch(batch.data(), batch.size(), &words, &records) == RingState::kGood);
      const uint32_t* record = batch.data();
      std::vector<uint32_t> completions;
      for (size_t i = 0; i < records; i++, record += record[kRecordWords]) {
        uint16_t id = static_cast<uint16_t>(record[kRecordId]);
        // The data area: the same bytes that the kernel has just written.
        const uint32_t* iovec = record + kRecordCdb + 4;
        CHECK(region.base()[iovec[0]] == static_cast<uint8_t>(record[kRecordCdb] >> 16));
        AddCompletion(&completions, id, 0, 0);
      }
      if (completions.empty()) {
        std::this_thread::yield();
        continue;
      }
      CHECK(ring.Complete(completions.data(), completions.size()) == RingState::kGood);
      kicks.fetch_add(1);
    }
  });
  size_t sent = 0;
  size_t done = 0;
  std::map<uint16_t, uint64_t> used;
  std::set<uint64_t> free_bytes;
  for (uint64_t i = 0; i < 512; i++) free_bytes.insert(kernel.data_offset() + i * 64);
  while (done < total) {
    if (sent < total && !free_bytes.empty()) {
      uint64_t at = *free_bytes.begin();
      uint8_t mark = static_cast<uint8_t>(sent);
      region.base()[at] = mark;
      std::vector<uint8_t> cdb = {0x2a, 0, mark, 0, 0, 0, 0, 0, 0, 0};
      uint16_t id = kernel.Submit(cdb, {{at, 64}});
      if (id != 0) {
        free_bytes.erase(at);
        used[id] = at;
        sent++;
      }
    }
    for (const mock::Completion& completion : kernel.HandleCompletions()) {
      free_bytes.insert(used.at(completion.id));
      used.erase(completion.id);
      done++;
    }
    CHECK(!kernel.broken());
  }
  stop = true;
  consumer.join();
  CHECK(kicks.load() > 0);
}

// Whatever is in ring and mailbox: nothing is read outside of the region, and no iovec leads out of the data area.
void Garbage() {
  for (int round = 0; round < 3000; round++) {
    Region region(32 * 1024);
    mock::Kernel kernel(region.base(), region.size(), 2048);
    if (Below(4) == 0) {
      for (int i = 0; i < 4; i++) region.base()[Below(16)] = static_cast<uint8_t>(Below(256));
      if (TcmuRing::Check(region.base(), region.size()) != nullptr) continue;
    }
    TcmuRing ring(region.base(), region.size());
    uint32_t ring_size;
    memcpy(&ring_size, region.base() + 8, 4);
    for (int i = 0; i < 6; i++) {
      Sent command = RandomCommand(kernel.data_offset(), region.size());
      kernel.Submit(command.cdb, command.data, command.bidirectional);
    }
    for (uint32_t flips = Below(12); flips > 0; flips--) {
      size_t at = Below(3) == 0 ? 12 + Below(4) : 128 + Below(1024);
      region.base()[at] = static_cast<uint8_t>(Below(2) == 0 ? Below(256) : 0xff);
    }
    std::vector<uint32_t> batch(64 + Below(600));
    for (int turn = 0; turn < 20; turn++) {
      size_t words = 0;
      size_t records = 0;
      RingState state = ring.Fetch(batch.data(), batch.size(), &words, &records);
      const uint32_t* record = batch.data();
      std::vector<uint32_t> completions;
      for (size_t i = 0; i < records; i++, record += record[kRecordWords]) {
        uint32_t kind = record[kRecordKind] & 0xffff;
        if (kind == kRecordTaskManagement || kind == kRecordUnknown) continue;
        if (kind == kRecordCommand) {
          const uint32_t* iovec = record + kRecordCdb + std::max<uint32_t>(4, ((record[kRecordKind] >> 16) + 3) / 4);
          uint32_t count = record[kRecordIovecs] + record[kRecordBidirectional];
          CHECK(iovec + 2 * count == record + record[kRecordWords]);
          for (uint32_t n = 0; n < count; n++) {
            CHECK(iovec[2 * n] >= 128 && static_cast<uint64_t>(iovec[2 * n]) + iovec[2 * n + 1] <= region.size());
          }
        }
        AddCompletion(&completions, static_cast<uint16_t>(record[kRecordId]), 2, 0);
      }
      CHECK(words <= batch.size());
      if (state != RingState::kGood) break;
      ring.Complete(completions.data(), completions.size());
      if (records == 0) break;
    }
  }
}

// A reset is seen before anything is fetched or completed after it, and the ring goes on from the start.
void Reset() {
  for (int round = 0; round < 300; round++) {
    Region region(64 * 1024);
    mock::Kernel kernel(region.base(), region.size(), 4096);
    TcmuRing ring(region.base(), region.size());
    std::vector<uint32_t> batch(4096);
    size_t words;
    size_t records;
    std::vector<uint32_t> completions;
    for (uint32_t i = 0, count = 1 + Below(30); i < count; i++) {
      CHECK(kernel.Submit({0, 0, 0, 0, 0, 0}, {}) != 0);
      CHECK(ring.Fetch(batch.data(), batch.size(), &words, &records) == RingState::kGood);
      completions.clear();
      AddCompletion(&completions, 1, 0, 0);
      // At least one was completed, at most one is in flight.
      if (i == 0 || Below(4) > 0 || i + 1 < count) {
        CHECK(ring.Complete(completions.data(), completions.size()) == RingState::kGood);
        CHECK(kernel.HandleCompletions().size() == 1);
        completions.clear();
      }
    }
    kernel.Reset();
    for (uint32_t i = Below(3); i > 0; i--) CHECK(kernel.Submit({0x28, 1, 2, 3, 4, 5, 6, 7, 8, 9}, {}) != 0);
    if (completions.empty() || Below(2) == 0) {
      CHECK(ring.Fetch(batch.data(), batch.size(), &words, &records) == RingState::kReset);
    } else {
      CHECK(ring.Complete(completions.data(), completions.size()) == RingState::kReset);
    }
    size_t waiting = kernel.in_flight();
    ring.Restart();
    // What came before the restart is doubtful, and one that may have been on its way; what comes later is not.
    for (int i = 0; i < 2; i++) CHECK(kernel.Submit({0, 0, 0, 0, 0, 0}, {}) != 0);
    CHECK(ring.Fetch(batch.data(), batch.size(), &words, &records) == RingState::kGood && records == waiting + 2);
    const uint32_t* record = batch.data();
    for (size_t i = 0; i < records; i++, record += record[kRecordWords]) {
      CHECK((record[kRecordKind] & 0xffff) == (i < waiting + 1 ? kRecordDoubtful : kRecordCommand));
    }
    CHECK(kernel.HandleCompletions().empty() && !kernel.broken());
  }
}

// What was not fetched cannot be completed, nothing twice, and a completion that is cut off is none.
void BadCompletions() {
  for (uint16_t id : {0, 2, 3, 65535}) {
    Region region(16 * 1024);
    mock::Kernel kernel(region.base(), region.size(), 4096);
    TcmuRing ring(region.base(), region.size());
    std::vector<uint32_t> batch(1024);
    size_t words;
    size_t records;
    kernel.Submit({0, 0, 0, 0, 0, 0}, {});
    kernel.Submit({0, 0, 0, 0, 0, 0}, {});
    CHECK(ring.Fetch(batch.data(), batch.size(), &words, &records) == RingState::kGood && records == 2);
    std::vector<uint32_t> completions;
    AddCompletion(&completions, 2, 0, 0);
    if (id != 3) CHECK(ring.Complete(completions.data(), completions.size()) == RingState::kGood);
    completions.clear();
    AddCompletion(&completions, id, 2, 0);
    if (id == 3) completions.resize(completions.size() - 1), completions[0] = 1;
    CHECK(ring.Complete(completions.data(), completions.size()) == RingState::kBroken);
    CHECK(ring.reason() != nullptr);
    CHECK(!kernel.broken());
  }
}

// An opcode of a later kernel is handed out as a command that nobody understands.
void UnknownOpcode() {
  for (uint32_t length = 8; length <= 160; length += 8) {
    Region region(16 * 1024);
    mock::Kernel kernel(region.base(), region.size(), 4096);
    TcmuRing ring(region.base(), region.size());
    std::vector<uint8_t> entry(length, 0xab);
    entry[0] = static_cast<uint8_t>(length | 5);
    entry[1] = entry[2] = entry[3] = 0;
    entry[4] = 9;
    entry[5] = entry[6] = entry[7] = 0;
    std::vector<uint32_t> batch(1024);
    size_t words;
    size_t records;
    // Between two commands, whose completions come in the other order.
    uint16_t before = kernel.Submit({0, 1, 2, 3, 4, 5}, {});
    CHECK(kernel.SubmitRaw(entry, 9));
    CHECK(ring.Fetch(batch.data(), batch.size(), &words, &records) == RingState::kGood && records == 2);
    const uint32_t* record = batch.data() + batch[kRecordWords];
    CHECK((record[kRecordKind] & 0xffff) == kRecordUnknown && record[kRecordId] == 9);
    uint16_t after = kernel.Submit({0x12, 1, 2, 3, 4, 5}, {});
    std::vector<uint32_t> completions;
    AddCompletion(&completions, before, 2, 0);
    CHECK(ring.Complete(completions.data(), completions.size()) == RingState::kGood);
    std::vector<mock::Completion> done = kernel.HandleCompletions();
    CHECK(done.size() == 2 && !kernel.broken());
    CHECK(done[0].id == before && done[0].status == 2);
    CHECK(done[1].id == 9 && (done[1].flags & kCompleteUnknown) != 0);
    CHECK(ring.Fetch(batch.data(), batch.size(), &words, &records) == RingState::kGood && records == 1);
    CHECK((batch[kRecordKind] & 0xffff) == kRecordCommand && batch[kRecordId] == after);
    const uint8_t* cdb = reinterpret_cast<const uint8_t*>(&batch[kRecordCdb]);
    CHECK(cdb[0] == 0x12 && cdb[5] == 5);
    completions.clear();
    AddCompletion(&completions, after, 0, 0);
    CHECK(ring.Complete(completions.data(), completions.size()) == RingState::kGood);
    CHECK(kernel.HandleCompletions().size() == 1 && !kernel.broken());
    CHECK(ring.in_flight() == 0);
  }
}

// An entry of a random opcode, or a command whose counts and offsets are random: its header is right, so that the ring goes on.
std::vector<uint8_t> RandomEntry(uint16_t id) {
  bool command = Below(2) == 0;
  uint32_t length = command ? 112 + 8 * Below(40) : 8 * (1 + Below(40));
  std::vector<uint8_t> entry(length);
  for (uint8_t& byte : entry) byte = static_cast<uint8_t>(Below(4) == 0 ? 0xff : Below(256));
  uint32_t word = length | (command ? 1 : 3 + Below(5));
  memcpy(&entry[0], &word, 4);
  memcpy(&entry[4], &id, 2);
  entry[6] = entry[7] = 0;
  if (command && Below(2) == 0) {
    uint32_t count = Below(30);
    memcpy(&entry[8], &count, 4);
    memset(&entry[12], 0, 12);
    uint64_t cdb_at = Below(3) == 0 ? UINT64_MAX - Below(300) : 128 + Below(8192);
    memcpy(&entry[24], &cdb_at, 8);
  }
  return entry;
}

// A record says nothing about memory outside of the data area.
void CheckBounds(const uint32_t* record, const Region& region, uint64_t data_at) {
  if ((record[kRecordKind] & 0xffff) != kRecordCommand) return;
  const uint32_t* iovec = record + kRecordCdb + std::max<uint32_t>(4, ((record[kRecordKind] >> 16) + 3) / 4);
  uint32_t count = record[kRecordIovecs] + record[kRecordBidirectional];
  CHECK(iovec + 2 * count == record + record[kRecordWords]);
  for (uint32_t n = 0; n < count; n++) {
    CHECK(iovec[2 * n] >= data_at && static_cast<uint64_t>(iovec[2 * n]) + iovec[2 * n + 1] <= region.size());
  }
}

// A million entries, good, malformed and unknown, with a ring that is damaged now and then: everything is completed once, or the ring says
// that it is unusable, which an undamaged one never does.
void Million() {
  uint64_t entries = 0;
  while (entries < 1000000) {
    Region region(64 * 1024);
    mock::Kernel kernel(region.base(), region.size(), 8192);
    TcmuRing ring(region.base(), region.size());
    std::vector<uint32_t> batch(4096);
    std::vector<uint16_t> held;
    bool damaged = false;
    bool usable = true;
    auto fetch = [&] {
      size_t words = 0;
      size_t records = 0;
      usable = ring.Fetch(batch.data(), batch.size(), &words, &records) == RingState::kGood;
      CHECK(words <= batch.size());
      const uint32_t* record = batch.data();
      for (size_t i = 0; i < records; i++, record += record[kRecordWords]) {
        uint32_t kind = record[kRecordKind] & 0xffff;
        CheckBounds(record, region, kernel.data_offset());
        if (kind == kRecordCommand || kind == kRecordMalformed) held.push_back(static_cast<uint16_t>(record[kRecordId]));
      }
    };
    auto complete = [&](size_t count) {
      std::shuffle(held.begin(), held.end(), random_source);
      std::vector<uint32_t> completions;
      for (; count > 0 && !held.empty(); count--, held.pop_back()) AddCompletion(&completions, held.back(), Below(3) == 0 ? 2 : 0, 0);
      usable = ring.Complete(completions.data(), completions.size()) == RingState::kGood;
      if (damaged || !usable) return;
      kernel.HandleCompletions();
      CHECK(!kernel.broken());
    };
    for (int turn = 0; turn < 3000 && usable; turn++) {
      for (uint32_t count = Below(10); count > 0; count--, entries++) {
        Sent command = RandomCommand(kernel.data_offset(), region.size());
        switch (Below(8)) {
          case 0:
            kernel.SubmitTaskManagement(1, std::vector<uint16_t>(Below(20), 1));
            break;
          case 1:
          case 2: {
            uint16_t id = kernel.next_id();
            kernel.SubmitRaw(RandomEntry(id), id);
            break;
          }
          default:
            kernel.Submit(command.cdb, command.data, command.bidirectional);
        }
      }
      if (Below(1000) == 0) {
        damaged = true;
        for (uint32_t flips = 1 + Below(8); flips > 0; flips--) {
          region.base()[Below(4) == 0 ? 12 + Below(4) : 128 + Below(8192)] = static_cast<uint8_t>(Below(256));
        }
      }
      fetch();
      if (usable) complete(Below(12));
      // The mock kernel believes its own ring.
      if (damaged && Below(4) == 0) break;
    }
    if (damaged) continue;
    CHECK(usable);
    while (!held.empty() || kernel.in_flight() > 0) {
      fetch();
      CHECK(usable);
      complete(held.size());
      CHECK(usable);
    }
    CHECK(ring.in_flight() == 0);
  }
}

// A page that the kernel takes away under a reader costs the ring, not the process.
void MissingPage() {
  int fd = memfd_create("ring", MFD_CLOEXEC);
  CHECK(fd >= 0);
  const size_t size = 64 * 1024;
  CHECK(ftruncate(fd, size) == 0);
  uint8_t* memory = static_cast<uint8_t*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  CHECK(memory != MAP_FAILED);
  mock::Kernel kernel(memory, size, 4096);
  std::unique_ptr<UioDevice> device;
  const char* reason = nullptr;
  CHECK(UioDevice::Open(fd, -1, -1, size, &device, &reason) == 0);
  std::vector<uint32_t> batch(1024);
  size_t words;
  size_t records;
  kernel.Submit({0, 0, 0, 0, 0, 0}, {});
  CHECK(device->Fetch(batch.data(), batch.size(), &words, &records) == RingState::kGood && records == 1);
  CHECK(ftruncate(fd, size - 4096) == 0);
  volatile uint8_t* missing = device->memory() + size - 100;
  CHECK(*missing == 0);
  *missing = 1;
  std::vector<uint32_t> completions;
  AddCompletion(&completions, 1, 0, 0);
  CHECK(device->Complete(completions.data(), completions.size()) == RingState::kBroken);
  CHECK(device->Fetch(batch.data(), batch.size(), &words, &records) == RingState::kBroken);
  CHECK(strstr(device->reason(), "page") != nullptr);
  device.reset();
  munmap(memory, size);
  close(fd);
}

}  // namespace

int main(int argc, char** argv) {
  const struct {
    const char* name;
    void (*run)();
  } rules[] = {
      {"every-command-once", EveryCommandOnce}, {"two-threads", TwoThreads},   {"garbage", Garbage},
      {"reset", Reset},                         {"bad-completions", BadCompletions}, {"unknown-opcode", UnknownOpcode},
      {"missing-page", MissingPage}, {"million", Million},
  };
  if (argc != 3) return 2;
  random_source.seed(static_cast<unsigned>(atol(argv[2])));
  for (const auto& rule : rules) {
    if (strcmp(rule.name, argv[1]) != 0) continue;
    rule.run();
    return 0;
  }
  return 2;
}
