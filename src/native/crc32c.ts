/** CRC32C as iSCSI's digests use it (RFC 7143, section 13.1), by the CPU's instructions where it has them. */

import { native } from './binding.ts';

/** CRC32C of `bytes`, going on from the CRC of what comes before them: an unsigned 32-bit number. */
export type Crc32c = (bytes: Uint8Array, previous?: number) => number;

/** The addon's; undefined without it. iSCSI brings tables of its own, which do for headers. */
export const nativeCrc32c: Crc32c | undefined = face(native?.crc32c);

/** The addon's form without instructions, so that tests reach it on every machine. */
export const nativeCrc32cPortable: Crc32c | undefined = face(native?.crc32cPortable);

/** What computes it: `sse4.2`, `armv8-crc`, `table` (the addon on a CPU without instructions) or `javascript`. */
export const crc32cImplementation: string = native?.crc32cImplementation ?? 'javascript';

type PartCrc = (memory: Uint8Array, offset: number, length: number, crc: number) => number;

function face(compute: PartCrc | undefined): Crc32c | undefined {
  if (compute === undefined) return undefined;
  return (bytes, previous = 0) => compute(bytes, 0, bytes.length, previous);
}
