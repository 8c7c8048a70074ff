import { codeOf, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { settle } from './chain-read.ts';
import type { CompressedReservation, EncodedUnit, Layer } from './layer.ts';

/** What storing units takes beside the layer. */
export interface UnitWriter {
  /** Writes bytes plainly, wherever they come to be. */
  write(offset: number, iov: IoVec): Promise<void>;
  flush(): Promise<void>;
}

/**
 * Stores units that follow each other, each as it was encoded: streams packed, plain ones and zeros as such. The range is locked.
 *
 * @param offset of the first unit
 */
export async function writeUnits(
  top: Layer,
  offset: number,
  units: readonly EncodedUnit[],
  writer: UnitWriter,
): Promise<void> {
  const { compression } = top;
  if (compression === undefined || top.reserveCompressed === undefined) {
    throw new LunetteError('UNSUPPORTED', 'this image cannot hold compressed clusters', { path: top.storage.path });
  }
  const { unit } = compression;
  const kindOf = (each: EncodedUnit): 'zero' | 'plain' | 'stream' =>
    each === null ? 'zero' : each.length === unit ? 'plain' : 'stream';
  for (let i = 0; i < units.length; ) {
    const kind = kindOf(units[i] as EncodedUnit);
    let end = i + 1;
    while (end < units.length && kindOf(units[end] as EncodedUnit) === kind) end++;
    const at = offset + i * unit;
    const length = Math.min(offset + end * unit, top.size) - at;
    if (kind === 'stream') {
      i += await writeStreams(top, at, units.slice(i, end) as Uint8Array[], writer);
      continue;
    }
    if (kind === 'plain') {
      const list = new IoVec();
      for (const bytes of units.slice(i, end)) list.append(bytes as Uint8Array);
      await writer.write(at, list.slice(0, length));
    } else if (!(await top.zero(at, length, true))) {
      for (let done = 0; done < length; done += unit) {
        await writer.write(at + done, IoVec.of(new Uint8Array(Math.min(unit, length - done))));
      }
    }
    i = end;
  }
}

/** @returns how many of the streams are stored */
async function writeStreams(
  top: Layer,
  offset: number,
  streams: readonly Uint8Array[],
  writer: UnitWriter,
): Promise<number> {
  const lengths = streams.map((bytes) => bytes.length);
  for (let retried = false; ; retried = true) {
    const reservation = await (top.reserveCompressed as NonNullable<Layer['reserveCompressed']>)(offset, lengths);
    try {
      await fill(reservation, streams);
    } catch (error) {
      await reservation.abort();
      if (retried || codeOf(error) !== 'NO_SPACE') throw error;
      await writer.flush();
      continue;
    }
    await reservation.commit();
    return reservation.count;
  }
}

async function fill(reservation: CompressedReservation, streams: readonly Uint8Array[]): Promise<void> {
  const all = new IoVec();
  for (let i = 0; i < reservation.count; i++) all.append(streams[i] as Uint8Array);
  let done = 0;
  const pending = reservation.regions.map(({ storage, storageOffset, length }) => {
    const part = all.slice(done, length);
    done += length;
    return storage.writev(storageOffset, part);
  });
  await settle(pending);
}
