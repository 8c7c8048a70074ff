/** Deflate streams unpacked on the threads of the I/O queue: one state for each of them, and no garbage but the promise. */

import type { DeflateForm, Inflate } from '../../formats/core/inflate.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { native } from '../native/binding.ts';
import { EBADMSG, systemError } from '../native/errno.ts';
import { type IoQueue, sharedIoQueue } from '../native/io-queue.ts';

/** As in native/inflate.h. */
const FORMS: Record<DeflateForm, number> = { 'raw-start': 0, raw: 1, zlib: 2 };

/** Unpacks on a queue whose addon can do that. */
export function inflateOn(queue: IoQueue): Inflate {
  return async (form, input, output) => {
    if (input.length === 0) return form === 'raw-start' ? 0 : undefined; // no list of memory has an empty piece
    const done = await queue.inflate(FORMS[form], IoVec.of(input).append(output));
    if (done === EBADMSG) return undefined;
    if (done < 0) throw systemError(done, 'inflate');
    return done;
  };
}

/** On the process's queue; undefined where the addon is not there or this Node keeps its zlib to itself. */
export const nativeInflate: Inflate | undefined =
  native?.operations.inflate === undefined
    ? undefined
    : (form, input, output) => inflateOn(sharedIoQueue())(form, input, output);
