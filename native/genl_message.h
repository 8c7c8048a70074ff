// Messages of generic netlink: built and taken apart in memory. Lengths that do not fit together end the walk, never the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lunette {

class GenlMessage {
 public:
  GenlMessage(uint16_t type, uint16_t flags, uint32_t sequence, uint8_t command, uint8_t version);
  void Put8(uint16_t type, uint8_t value) { Put(type, &value, sizeof value); }
  void Put32(uint16_t type, uint32_t value) { Put(type, &value, sizeof value); }
  void PutText(uint16_t type, const std::string& text) { Put(type, text.c_str(), text.size() + 1); }
  // The message with its length filled in.
  const std::vector<uint8_t>& bytes();

 private:
  void Put(uint16_t type, const void* value, size_t length);
  std::vector<uint8_t> bytes_;
};

struct NetlinkHeader {
  uint32_t length;
  uint16_t type;
  uint16_t flags;
  uint32_t sequence;
  uint32_t port;
};

// One message of a datagram, as pointers into it.
struct NetlinkView {
  NetlinkHeader header;
  const uint8_t* body;
  size_t body_length;
};

// The message at `*at`, which moves on to the next. False: there is none, or it is cut off.
bool NextMessage(const uint8_t* data, size_t length, size_t* at, NetlinkView* out);

// An attribute's value within [data, data + length): the first of the type; false when there is none.
bool FindAttribute(const uint8_t* data, size_t length, uint16_t type, const uint8_t** value, size_t* value_length);
bool FindAttribute32(const uint8_t* data, size_t length, uint16_t type, uint32_t* value);

// Attributes of a generic message start behind its header of 4 bytes.
constexpr size_t kGenlHeaderSize = 4;

}  // namespace lunette
