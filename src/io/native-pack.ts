/** Units packed into streams, many at a time, on the threads of the I/O queue. */

import { IoVec } from '../../formats/core/iov.ts';
import type { Packing } from '../../formats/core/pack.ts';
import type { StreamForm } from '../../formats/core/unpack.ts';
import { native } from '../native/binding.ts';
import { systemError } from '../native/errno.ts';
import { type IoQueue, sharedIoQueue } from '../native/io-queue.ts';
import { STREAM_FORMS } from './stream-forms.ts';

/** Whether the addon is there and has what a form takes. */
export function canPack(form: StreamForm): boolean {
  return native?.operations.pack !== undefined && native.canPack?.(STREAM_FORMS[form]) === true;
}

/**
 * Packs the units of `input`, of which the last may be shorter: zeros fill it up. The streams come one after the other in `output`, which has
 * room for whole units. All of this memory must stay until that is done. Only where canPack().
 *
 * @param lengths a number for each unit, filled in: bytes of its stream; `unit` where its bytes are there as they are, because no stream is shorter;
 *   -1 for zeros, of which there is nothing
 */
export async function packUnits(
  { form, level, windowBits }: Packing,
  unit: number,
  input: Uint8Array,
  output: Uint8Array,
  lengths: Int32Array,
  queue: IoQueue = sharedIoQueue(),
): Promise<void> {
  const list = IoVec.of(new Uint8Array(lengths.buffer, lengths.byteOffset, lengths.byteLength));
  const result = await queue.pack(
    { form: STREAM_FORMS[form], level, windowBits },
    unit,
    list.append(input).append(output),
  );
  if (result < 0) throw systemError(result, 'pack');
}
