/** Streams unpacked many at a time on the threads of the I/O queue. */

import { availableParallelism } from 'node:os';
import { IoVec } from '../../formats/core/iov.ts';
import { NO_STREAM, PLACE_WORDS, type Unpack } from '../../formats/core/unpack.ts';
import { native } from '../native/binding.ts';
import { EBADMSG, systemError } from '../native/errno.ts';
import { type IoQueue, ioThreads, MAX_IO_THREADS, setIoThreads, sharedIoQueue } from '../native/io-queue.ts';
import { STREAM_FORMS } from './stream-forms.ts';

/** Unpacks on a queue whose addon can do that. */
export function unpackOn(queue: IoQueue): Unpack {
  return async (form, packed, places, outputs) => {
    if (native?.canUnpack?.(STREAM_FORMS[form]) !== true) return false;
    const list = IoVec.of(new Uint8Array(places.buffer, places.byteOffset, places.byteLength)).append(packed);
    const result = await queue.unpack(STREAM_FORMS[form], list.appendSlice(outputs, 0, outputs.byteLength));
    if (result < 0) throw systemError(result, 'unpack');
    for (let at = PLACE_WORDS - 1; at < places.length; at += PLACE_WORDS) {
      const done = places[at] as number;
      if (done >= 0) continue;
      if (done !== EBADMSG) throw systemError(done, 'unpack');
      places[at] = NO_STREAM;
    }
    return true;
  };
}

/** On the process's queue; undefined where the addon is not there. */
export const nativeUnpack: Unpack | undefined =
  native?.operations.unpack === undefined
    ? undefined
    : (form, packed, places, outputs) => unpackOn(sharedIoQueue())(form, packed, places, outputs);

/** Has enough threads in the process's queue for every core to unpack, beside one for quick requests. */
export function unpackOnAllCores(): void {
  const threads = Math.min(MAX_IO_THREADS, availableParallelism() + 1);
  if (threads > ioThreads()) setIoThreads(threads);
}
