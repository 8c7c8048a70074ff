import { appendZeros, IoVec } from '../core/iov.ts';
import type { ChainReader } from './chain-read.ts';
import type { Region, Reservation } from './layer.ts';

/** The bytes of a request, and where in the disk they go. */
export interface WriteRequest {
  readonly offset: number;
  readonly iov: IoVec;
}

/**
 * Fills the new space of a reservation: inside [start, end) with the bytes of the request, around it with what each region wants.
 *
 * @returns all writes, begun; regions that touch in the file go in one
 */
export function fillRegions(
  reader: ChainReader,
  reservation: Reservation,
  range: { readonly start: number; readonly end: number },
  request: WriteRequest,
): Promise<void>[] {
  const pending: Promise<void>[] = [];
  let run: Region[] = [];
  for (const region of reservation.regions) {
    const last = run[run.length - 1];
    const touches =
      last === undefined ||
      (last.storage === region.storage && last.storageOffset + last.length === region.storageOffset);
    if (!touches) {
      pending.push(fillRun(reader, run, range, request));
      run = [];
    }
    run.push(region);
  }
  if (run.length > 0) pending.push(fillRun(reader, run, range, request));
  return pending;
}

async function fillRun(
  reader: ChainReader,
  run: readonly Region[],
  { start, end }: { readonly start: number; readonly end: number },
  { offset, iov }: WriteRequest,
): Promise<void> {
  const { storage, storageOffset } = run[0] as Region;
  let at = storageOffset;
  const list = new IoVec();
  const write = async (): Promise<void> => {
    if (list.byteLength > 0 && !storage.tryWritev(at, list)) await storage.writev(at, list);
    at += list.byteLength;
    list.clear();
  };
  /** What is around the request's bytes. */
  const surround = async (region: Region, guest: number, length: number): Promise<void> => {
    if (length === 0) return;
    // The rest of a disk's last unit lies behind its end, and reads as zeros.
    const zero = region.fill === 'zero' || reader.readsZero(0, guest, length);
    if (zero && region.fresh) {
      await write();
      at += length; // zeros are there
    } else if (zero) {
      appendZeros(list, length);
    } else {
      const bytes = new Uint8Array(length);
      await reader.read(0, guest, IoVec.of(bytes));
      list.append(bytes);
    }
  };
  for (const region of run) {
    const regionEnd = region.guestOffset + region.length;
    const from = Math.min(Math.max(start, region.guestOffset), regionEnd);
    const to = Math.max(Math.min(end, regionEnd), from);
    await surround(region, region.guestOffset, from - region.guestOffset);
    list.appendSlice(iov, from - offset, to - from);
    await surround(region, to, regionEnd - to);
  }
  await write();
}
