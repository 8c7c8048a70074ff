/** Unpacking of many streams in one go, outside the event loop. */

import type { IoVec } from './iov.ts';

/** Bare deflate (RFC 1951), up to 15 window bits, or zstd frames (RFC 8878). */
export type StreamForm = 'deflate' | 'zstd';

/** Numbers in `places` for each stream: where it begins, bytes that it has at most, bytes of output that came of it. */
export const PLACE_WORDS = 3;
/** In place of bytes of output: this is no such stream. */
export const NO_STREAM = -1;

/**
 * Unpacks streams that lie in `packed`, each into a piece of `outputs` of its own: it is over when that is full, whatever follows. All of this
 * memory is its own until it is done.
 *
 * @param places PLACE_WORDS numbers for each piece
 * @returns false when it cannot do that form here: nothing was done
 */
export type Unpack = (form: StreamForm, packed: Uint8Array, places: Int32Array, outputs: IoVec) => Promise<boolean>;
