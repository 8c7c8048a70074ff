// The kernel's side of a TCMU device as a process: memory in a file, wakeups through two pipes with names.
// Usage: mock_kernel MEMORY EVENTS KICKS REGION_SIZE RING_SIZE FLAGS
//
// Lines on standard input, CDBs and data in hexadecimal, `-` for none:
//   send CDB in LENGTH       a command with so much room for data-in, spread over pages that hold somebody else's data
//   send CDB out DATA        a command with data-out
//   abort TYPE ID…           task management
//   unknown LENGTH           an entry of so many bytes whose opcode nobody knows
//   malformed                a command whose iovec leads out of the data area
//   reset                    action/reset_ring
//   bench OPS DEPTH BYTES SPAN SEED   random READ(16) of BYTES within SPAN; WRITE(16) with `benchwrite`
//   fuzz OPS DEPTH SEED      random CDBs, plausible ones among them, malformed and unknown entries, aborts; data is checked, not printed
// Each completion is a line: id status flags readLength sense data. A benchmark ends with `bench SECONDS`.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <iostream>
#include <random>
#include <sstream>

#include "mock_kernel.h"

namespace {

constexpr size_t kPage = 4096;
constexpr uint8_t kStale = 0xee;

struct Command {
  std::vector<mock::Extent> data;
  bool reads;
};

std::vector<uint8_t> FromHex(const std::string& text) {
  std::vector<uint8_t> bytes;
  if (text == "-") return bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2) bytes.push_back(static_cast<uint8_t>(strtoul(text.substr(i, 2).c_str(), nullptr, 16)));
  return bytes;
}

std::string ToHex(const std::vector<uint8_t>& bytes) {
  static const char digits[] = "0123456789abcdef";
  if (bytes.empty()) return "-";
  std::string text;
  for (uint8_t byte : bytes) {
    text.push_back(digits[byte >> 4]);
    text.push_back(digits[byte & 15]);
  }
  return text;
}

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

class Device {
 public:
  Device(char** argv)
      : size_(strtoull(argv[4], nullptr, 10)),
        events_(open(argv[2], O_RDWR | O_NONBLOCK)),
        kicks_(open(argv[3], O_RDWR | O_NONBLOCK)),
        memory_(Map(argv[1], size_)),
        kernel_(memory_, size_, static_cast<uint32_t>(strtoul(argv[5], nullptr, 10)),
                static_cast<uint16_t>(strtoul(argv[6], nullptr, 10))) {
    data_ = (kernel_.data_offset() + kPage - 1) / kPage * kPage;
    for (uint64_t at = data_; at + kPage <= size_; at += kPage) free_.push_back(at);
    puts("ready");
    fflush(stdout);
  }

  void Serve() {
    std::string pending;
    for (;;) {
      pollfd waiting[2] = {{0, POLLIN, 0}, {kicks_, POLLIN, 0}};
      if (poll(waiting, 2, -1) < 0) return;
      if (waiting[1].revents != 0) {
        Complete(true);
      }
      if (waiting[0].revents != 0) {
        char buffer[65536];
        ssize_t length = read(0, buffer, sizeof buffer);
        if (length <= 0) return;
        pending.append(buffer, static_cast<size_t>(length));
        for (size_t end; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1)) Obey(pending.substr(0, end));
      }
    }
  }

 private:
  static uint8_t* Map(const char* path, size_t size) {
    int fd = open(path, O_RDWR);
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || memory == MAP_FAILED) {
      perror(path);
      exit(1);
    }
    close(fd);
    return static_cast<uint8_t*>(memory);
  }

  void Wake() {
    uint32_t one = 1;
    if (write(events_, &one, sizeof one) < 0 && errno != EAGAIN) exit(1);
  }

  // Pages that do not follow each other, as after long use; `together` for one piece.
  std::vector<mock::Extent> Take(uint64_t length, bool together) {
    std::vector<mock::Extent> data;
    while (length > 0) {
      if (free_.empty()) return {};
      uint64_t at = free_.back();
      free_.pop_back();
      uint64_t take = std::min<uint64_t>(length, kPage);
      memset(memory_ + at, kStale, kPage);
      if (together && !data.empty() && data.back().offset + data.back().length == at) data.back().length += take;
      else data.push_back({at, take});
      length -= take;
    }
    return data;
  }

  void Give(const std::vector<mock::Extent>& data) {
    for (const mock::Extent& extent : data) {
      for (uint64_t at = extent.offset; at < extent.offset + extent.length; at += kPage) free_.push_back(at);
    }
  }

  void Complete(bool print) {
    uint32_t count[1024];
    while (read(kicks_, count, sizeof count) > 0) {
    }
    for (const mock::Completion& done : kernel_.HandleCompletions()) {
      Command& command = commands_[done.id];
      if (print) {
        std::vector<uint8_t> data;
        // As the kernel copies back: all that the initiator expects, unless the response says how much there is.
        bool check = done.status == 2;
        bool limited = (done.flags & 2) != 0 && done.read_length > 0;
        if (command.reads && (!check || limited)) {
          uint64_t left = limited ? done.read_length : UINT64_MAX;
          for (const mock::Extent& extent : command.data) {
            uint64_t take = std::min(left, extent.length);
            data.insert(data.end(), memory_ + extent.offset, memory_ + extent.offset + take);
            left -= take;
          }
        }
        printf("%u %u %u %u %s %s\n", done.id, done.status, done.flags, done.read_length, ToHex(done.sense).c_str(), ToHex(data).c_str());
      }
      Give(command.data);
      commands_.erase(done.id);
      completed_++;
    }
    if (kernel_.broken()) puts("broken");
    if (print || kernel_.broken()) fflush(stdout);
  }

  void Obey(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "send") {
      std::string cdb, direction, argument;
      words >> cdb >> direction >> argument;
      bool reads = direction == "in";
      std::vector<uint8_t> out = reads ? std::vector<uint8_t>() : FromHex(argument);
      std::vector<mock::Extent> data = Take(reads ? strtoull(argument.c_str(), nullptr, 10) : out.size(), false);
      size_t at = 0;
      for (const mock::Extent& extent : reads ? std::vector<mock::Extent>() : data) {
        memcpy(memory_ + extent.offset, &out[at], extent.length);
        at += extent.length;
      }
      uint16_t id = kernel_.Submit(FromHex(cdb), data);
      if (id == 0) puts("full");
      else {
        commands_[id] = {data, reads};
        printf("sent %u\n", id);
      }
      fflush(stdout);
      Wake();
    } else if (verb == "abort") {
      unsigned type, id;
      std::vector<uint16_t> ids;
      words >> type;
      while (words >> id) ids.push_back(static_cast<uint16_t>(id));
      kernel_.SubmitTaskManagement(static_cast<uint8_t>(type), ids);
      Wake();
    } else if (verb == "malformed") {
      uint16_t id = kernel_.Submit(std::vector<uint8_t>(6), {{size_ - 100, 4096}});
      commands_[id] = {{}, false};
      printf("sent %u\n", id);
      fflush(stdout);
      Wake();
    } else if (verb == "unknown") {
      uint32_t length = 0;
      words >> length;
      uint16_t id = kernel_.next_id();
      std::vector<uint8_t> entry(length, 0xab);
      entry[0] = static_cast<uint8_t>(length | 5);
      entry[1] = static_cast<uint8_t>(length >> 8);
      entry[2] = entry[3] = entry[6] = entry[7] = 0;
      entry[4] = static_cast<uint8_t>(id);
      entry[5] = static_cast<uint8_t>(id >> 8);
      if (!kernel_.SubmitRaw(entry, id)) puts("full");
      commands_[id] = {{}, false};
      printf("sent %u\n", id);
      fflush(stdout);
      Wake();
    } else if (verb == "reset") {
      kernel_.Reset();
      for (auto& entry : commands_) Give(entry.second.data);
      commands_.clear();
      puts("reset");
      fflush(stdout);
      Wake();
    } else if (verb == "bench" || verb == "benchwrite") {
      Bench(words, verb == "benchwrite");
    } else if (verb == "fuzz") {
      Fuzz(words);
    }
  }

  static size_t Quantile(const std::vector<uint64_t>& counts, uint64_t total, double part) {
    uint64_t below = static_cast<uint64_t>(static_cast<double>(total) * part);
    size_t at = 0;
    for (uint64_t seen = counts[0]; seen < below && at + 1 < counts.size(); seen += counts[at]) at++;
    return at;
  }

  uint32_t Below(uint32_t limit) { return static_cast<uint32_t>(random_() % limit); }

  // Half of them plausible: short transfers near the beginning of the disk.
  std::vector<uint8_t> RandomCdb() {
    static const uint8_t plausible[] = {0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x1b, 0x1d, 0x1e, 0x25, 0x28, 0x2a, 0x2e,
                                        0x2f, 0x34, 0x35, 0x37, 0x41, 0x42, 0x4d, 0x55, 0x5a, 0x5e, 0x83, 0x84, 0x88, 0x89,
                                        0x8a, 0x8b, 0x8e, 0x8f, 0x90, 0x91, 0x93, 0x9c, 0x9e, 0xa0, 0xa3, 0xa4, 0xa8, 0xaa,
                                        0xae, 0xaf, 0xb7};
    bool random = Below(2) == 0;
    uint8_t opcode = random ? static_cast<uint8_t>(Below(256)) : plausible[Below(sizeof plausible)];
    // Those that wipe the disk are for tests of their own.
    while (opcode == 0x04 || opcode == 0x48) opcode = static_cast<uint8_t>(Below(256));
    static const uint8_t by_group[8] = {6, 10, 10, 12, 16, 12, 10, 10};
    uint8_t additional = static_cast<uint8_t>(Below(253));
    size_t length = opcode == 0x7f ? 8u + additional : by_group[opcode >> 5];
    std::vector<uint8_t> cdb(length);
    for (uint8_t& byte : cdb) byte = static_cast<uint8_t>(random ? Below(256) : Below(8) == 0 ? Below(256) : 0);
    cdb[0] = opcode;
    if (opcode == 0x7f) cdb[7] = additional;
    if (!random && length >= 10) {
      // LBA and length, in their last bytes.
      size_t lba_end = length == 16 ? 9 : 5;
      cdb[lba_end] = static_cast<uint8_t>(Below(256));
      cdb[length == 16 ? 13 : length == 12 ? 9 : 8] = static_cast<uint8_t>(Below(40));
    } else if (!random && length == 6) {
      cdb[4] = static_cast<uint8_t>(Below(256));
    }
    // A unit that is stopped would answer nothing else any more.
    if (opcode == 0x1b) cdb[4] = 1;
    return cdb;
  }

  // Which way the data of a command goes, as whoever sends it says.
  static bool SendsData(uint8_t opcode) {
    static const uint8_t senders[] = {0x0a, 0x15, 0x1d, 0x2a, 0x2e, 0x2f, 0x3b, 0x3f, 0x41, 0x42, 0x4c, 0x55, 0x5f, 0x7f, 0x83, 0x89,
                                      0x8a, 0x8b, 0x8e, 0x8f, 0x93, 0x9c, 0x9d, 0x9f, 0xa4, 0xaa, 0xae, 0xaf, 0xbf};
    for (uint8_t sender : senders) {
      if (sender == opcode) return true;
    }
    return false;
  }

  // An entry whose counts and offsets are anything.
  bool SubmitMalformed(uint16_t id) {
    bool command = Below(2) == 0;
    std::vector<uint8_t> entry(command ? 112 + 8 * Below(40) : 8 * (1 + Below(40)));
    for (uint8_t& byte : entry) byte = static_cast<uint8_t>(Below(4) == 0 ? 0xff : Below(256));
    uint32_t word = static_cast<uint32_t>(entry.size()) | (command ? 1 : 3 + Below(5));
    memcpy(&entry[0], &word, 4);
    memcpy(&entry[4], &id, 2);
    entry[6] = entry[7] = 0;
    // Iovecs that could name pages of others lead out of the region.
    if (command) {
      uint32_t count = 1 + Below(4);
      uint64_t outside = size_ - Below(4096);
      uint64_t length = 8192;
      memcpy(&entry[8], &count, 4);
      memset(&entry[12], 0, 12);
      memcpy(&entry[48], &outside, 8);
      memcpy(&entry[56], &length, 8);
    }
    return kernel_.SubmitRaw(entry, id);
  }

  // No byte is 0xee (bit 0 is set in all), also when some are put together with others: what is 0xee in data-in is somebody else's.
  void FillOut(const std::vector<mock::Extent>& data) {
    for (const mock::Extent& extent : data) {
      uint64_t word = random_() | 0x0101010101010101;
      for (uint64_t i = 0; i < extent.length; i++) memory_[extent.offset + i] = static_cast<uint8_t>(word >> (8 * (i % 8)));
    }
  }

  bool HasStale(const mock::Completion& done, const Command& command) {
    bool limited = (done.flags & 2) != 0 && done.read_length > 0;
    if (!command.reads || (done.status == 2 && !limited)) return false;
    uint64_t left = limited ? done.read_length : UINT64_MAX;
    int row = 0;
    for (const mock::Extent& extent : command.data) {
      uint64_t take = std::min(left, extent.length);
      for (uint64_t i = 0; i < take; i++) {
        row = memory_[extent.offset + i] == kStale ? row + 1 : 0;
        if (row == 4) return true;
      }
      left -= take;
    }
    return false;
  }

  void Fuzz(std::istringstream& words) {
    uint64_t operations, depth, seed;
    words >> operations >> depth >> seed;
    random_.seed(seed);
    uint64_t sent = 0, done = 0, good = 0, stale = 0;
    double start = Now();
    while (done < operations && !kernel_.broken()) {
      bool any = false;
      while (sent < operations && kernel_.in_flight() < depth) {
        uint32_t kind = Below(64);
        uint16_t id = kernel_.next_id();
        if (kind < 4) {
          if (!SubmitMalformed(id)) break;
          commands_[id] = {{}, false};
        } else {
          std::vector<uint8_t> cdb = RandomCdb();
          bool reads = !SendsData(cdb[0]);
          uint64_t length = Below(4) == 0 ? Below(70000) : Below(3) == 0 ? 0 : 512 * Below(41);
          std::vector<mock::Extent> data = Take(length, false);
          if (!reads) FillOut(data);
          id = kernel_.Submit(cdb, data);
          if (id == 0) {
            Give(data);
            break;
          }
          commands_[id] = {data, reads};
        }
        sent++;
        any = true;
        if (Below(200) == 0) kernel_.SubmitTaskManagement(1, {static_cast<uint16_t>(1 + Below(static_cast<uint32_t>(depth)))});
      }
      if (any) Wake();
      pollfd waiting = {kicks_, POLLIN, 0};
      // Nothing in this time: it hangs.
      if (poll(&waiting, 1, 60000) <= 0) break;
      uint32_t count[1024];
      while (read(kicks_, count, sizeof count) == static_cast<ssize_t>(sizeof count)) {
      }
      for (const mock::Completion& completion : kernel_.HandleCompletions()) {
        Command& command = commands_[completion.id];
        if (completion.status == 0) good++;
        if (HasStale(completion, command)) stale++;
        Give(command.data);
        commands_.erase(completion.id);
        done++;
      }
    }
    if (kernel_.broken()) puts("broken");
    printf("fuzz %.6f %llu %llu %llu\n", Now() - start, static_cast<unsigned long long>(done), static_cast<unsigned long long>(good),
           static_cast<unsigned long long>(stale));
    fflush(stdout);
  }

  void Bench(std::istringstream& words, bool writes) {
    uint64_t operations, depth, bytes, span;
    unsigned seed;
    words >> operations >> depth >> bytes >> span >> seed;
    std::mt19937_64 random(seed);
    std::sort(free_.begin(), free_.end(), std::greater<uint64_t>());
    // The data is where it is: no command waits for the mock kernel to find pages.
    std::vector<uint8_t> cdb(16);
    cdb[0] = writes ? 0x8a : 0x88;
    uint32_t blocks = static_cast<uint32_t>(bytes / 512);
    for (int i = 0; i < 4; i++) cdb[10 + i] = static_cast<uint8_t>(blocks >> (24 - 8 * i));
    std::vector<std::vector<mock::Extent>> buffers;
    for (uint64_t i = 0; i < depth; i++) buffers.push_back(Take(bytes, true));
    std::map<uint16_t, size_t> owner;
    std::vector<double> begun(depth);
    // By microseconds; the last one is for all that took longer.
    std::vector<uint64_t> latencies(1000001);
    std::vector<size_t> idle;
    for (size_t i = 0; i < depth; i++) idle.push_back(i);
    uint64_t sent = 0;
    uint64_t done = 0;
    uint64_t failed = 0;
    double start = Now();
    while (done < operations) {
      bool any = false;
      while (sent < operations && !idle.empty()) {
        uint64_t lba = random() % (span / bytes) * blocks;
        for (int i = 0; i < 8; i++) cdb[2 + i] = static_cast<uint8_t>(lba >> (56 - 8 * i));
        uint16_t id = kernel_.Submit(cdb, buffers[idle.back()]);
        if (id == 0) break;
        owner[id] = idle.back();
        begun[idle.back()] = Now();
        idle.pop_back();
        sent++;
        any = true;
      }
      // One wakeup for what was queued together, as since Linux 5.13.
      if (any) Wake();
      pollfd waiting = {kicks_, POLLIN, 0};
      if (poll(&waiting, 1, 10000) <= 0) break;
      uint32_t count[1024];
      while (read(kicks_, count, sizeof count) == static_cast<ssize_t>(sizeof count)) {
      }
      double now = Now();
      for (const mock::Completion& completion : kernel_.HandleCompletions()) {
        if (completion.status != 0) failed++;
        idle.push_back(owner[completion.id]);
        latencies[std::min<size_t>(latencies.size() - 1, static_cast<size_t>((now - begun[owner[completion.id]]) * 1e6))]++;
        owner.erase(completion.id);
        done++;
      }
    }
    for (auto& buffer : buffers) Give(buffer);
    printf("bench %.6f %llu %llu %zu\n", Now() - start, static_cast<unsigned long long>(done), static_cast<unsigned long long>(failed),
           Quantile(latencies, done, 0.99));
    fflush(stdout);
  }

  size_t size_;
  int events_;
  int kicks_;
  uint8_t* memory_;
  mock::Kernel kernel_;
  uint64_t data_;
  std::vector<uint64_t> free_;
  std::map<uint16_t, Command> commands_;
  uint64_t completed_ = 0;
  std::mt19937_64 random_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  Device(argv).Serve();
  return 0;
}
