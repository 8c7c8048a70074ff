#include "genl_message.h"

#include <string.h>

namespace lunette {
namespace {

constexpr size_t kHeaderSize = 16;
constexpr size_t kAttributeHeader = 4;
constexpr uint16_t kTypeMask = 0x3fff;  // Without the flags for nesting and byte order.

size_t Aligned(size_t length) { return (length + 3) & ~static_cast<size_t>(3); }

}  // namespace

GenlMessage::GenlMessage(uint16_t type, uint16_t flags, uint32_t sequence, uint8_t command, uint8_t version)
    : bytes_(kHeaderSize + kGenlHeaderSize) {
  memcpy(&bytes_[4], &type, sizeof type);
  memcpy(&bytes_[6], &flags, sizeof flags);
  memcpy(&bytes_[8], &sequence, sizeof sequence);
  bytes_[kHeaderSize] = command;
  bytes_[kHeaderSize + 1] = version;
}

void GenlMessage::Put(uint16_t type, const void* value, size_t length) {
  size_t at = bytes_.size();
  bytes_.resize(at + Aligned(kAttributeHeader + length));
  uint16_t whole = static_cast<uint16_t>(kAttributeHeader + length);
  memcpy(&bytes_[at], &whole, sizeof whole);
  memcpy(&bytes_[at + 2], &type, sizeof type);
  memcpy(&bytes_[at + kAttributeHeader], value, length);
}

const std::vector<uint8_t>& GenlMessage::bytes() {
  uint32_t length = static_cast<uint32_t>(bytes_.size());
  memcpy(&bytes_[0], &length, sizeof length);
  return bytes_;
}

bool NextMessage(const uint8_t* data, size_t length, size_t* at, NetlinkView* out) {
  if (*at > length || length - *at < kHeaderSize) return false;
  const uint8_t* start = data + *at;
  memcpy(&out->header.length, start, 4);
  memcpy(&out->header.type, start + 4, 2);
  memcpy(&out->header.flags, start + 6, 2);
  memcpy(&out->header.sequence, start + 8, 4);
  memcpy(&out->header.port, start + 12, 4);
  if (out->header.length < kHeaderSize || out->header.length > length - *at) return false;
  out->body = start + kHeaderSize;
  out->body_length = out->header.length - kHeaderSize;
  *at += Aligned(out->header.length);
  return true;
}

bool FindAttribute(const uint8_t* data, size_t length, uint16_t type, const uint8_t** value, size_t* value_length) {
  size_t at = 0;
  while (at + kAttributeHeader <= length) {
    uint16_t whole;
    uint16_t found;
    memcpy(&whole, data + at, sizeof whole);
    memcpy(&found, data + at + 2, sizeof found);
    if (whole < kAttributeHeader || whole > length - at) return false;
    if ((found & kTypeMask) == type) {
      *value = data + at + kAttributeHeader;
      *value_length = whole - kAttributeHeader;
      return true;
    }
    at += Aligned(whole);
  }
  return false;
}

bool FindAttribute32(const uint8_t* data, size_t length, uint16_t type, uint32_t* value) {
  const uint8_t* bytes;
  size_t size;
  if (!FindAttribute(data, length, type, &bytes, &size) || size < sizeof *value) return false;
  memcpy(value, bytes, sizeof *value);
  return true;
}

}  // namespace lunette
