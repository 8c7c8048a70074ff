/** Where memory is, for native code that reads and writes it by address. */

import { native, requireNative } from './binding.ts';

// Only what was registered: a WeakMap entry costs more than asking once.
const addresses = new WeakMap<Uint8Array, number>();

/**
 * Remembers the address of memory that is used again and again (a pool's buffers), which makes each later use cheaper. Nothing without the addon.
 * The memory must not be transferred to another thread while native code may use it.
 */
export function registerMemory(memory: Uint8Array): void {
  if (native !== undefined) addresses.set(memory, native.addressOf(memory));
}

/** The address of a view's first byte. Valid while somebody holds the view. */
export function addressOf(memory: Uint8Array): number {
  return addresses.get(memory) ?? requireNative().addressOf(memory);
}
