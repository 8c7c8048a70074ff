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
    }
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
      for (const mock::Completion& completion : kernel_.HandleCompletions()) {
        if (completion.status != 0) failed++;
        idle.push_back(owner[completion.id]);
        owner.erase(completion.id);
        done++;
      }
    }
    for (auto& buffer : buffers) Give(buffer);
    printf("bench %.6f %llu %llu\n", Now() - start, static_cast<unsigned long long>(done), static_cast<unsigned long long>(failed));
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
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  Device(argv).Serve();
  return 0;
}
