// Whether memory holds only zeros.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunette {

bool IsZero(const uint8_t* bytes, size_t length);

}  // namespace lunette
