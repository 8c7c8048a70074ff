import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignUp, divideUp } from '../core/units.ts';
import type { ResizeOptions } from '../image/layer.ts';
import { EntryView } from './entry.ts';
import type { Geometry } from './geometry.ts';
import { HEADER_V2, MAX_L1_BYTES } from './header.ts';
import type { Preallocation } from './preallocate.ts';
import type { SnapshotEditorHost } from './snapshot-editor.ts';
import { zeroFill } from './zero-fill.ts';

/** What resizing asks of the writer. */
export interface ResizeHost extends SnapshotEditorHost {
  /** As Qcow2Writer.zero and release for whole clusters, also behind the disk's end: with nothing left in their place, or zeros. */
  zeroRange(offset: number, length: number, mode: 'deallocate' | 'unmap' | 'keep'): Promise<void>;
  /** As Qcow2Writer.preallocate. */
  preallocate(from: number, to: number, mode: Preallocation): Promise<void>;
}

/**
 * Changes the guest size, while no write is in flight. Growing: whatever would show in the new area is dropped or covered with zeros, and
 * that is durable, before the header says the new size. Shrinking: the header first, then what lies behind the end is freed.
 *
 * @param switched called when the header says the new size
 * @throws {ImageError} TOO_LARGE, UNSUPPORTED; {LunetteError} INVALID
 */
export async function resizeDisk(
  host: ResizeHost,
  change: { from: number; to: number; hasSnapshots: boolean; options: ResizeOptions; switched: () => void },
): Promise<void> {
  const { from, to, options, switched } = change;
  const { geometry, storage, dataStorage, rawData } = host.state.parts;
  checkResize({ ...change, geometry, shrink: options.shrink, path: storage.path });
  const entries = divideUp(to, geometry.l2Coverage);
  await host.quiet();
  const sayNewSize = async () => {
    await host.switchSize(to, (view) => HEADER_V2.write(view, { size: to }));
    switched();
  };
  if (to > from) {
    if (entries > host.state.parts.l1.entries) await growL1(host, entries);
    await dropBehind(host, from);
    // A raw data file shows all of itself: its entries have to say so.
    const mode = rawData && options.preallocation === 'off' ? 'metadata' : options.preallocation;
    if (host.state.external) await growDataFile(host, from, to, mode !== 'off');
    if (mode !== 'off') await host.preallocate(alignUp(from, geometry.clusterSize), to, mode);
    await coverParent(host, from, Math.min(to, options.shownTo ?? 0), mode === 'off' ? 'unmap' : 'keep');
    await host.quiet();
    await sayNewSize();
  } else if (to < from) {
    await sayNewSize();
    try {
      await dropBehind(host, to);
      await host.quiet();
      if (host.state.external && dataStorage.growsZeroed) await dataStorage.resize(to);
    } catch (error) {
      // What is behind the end is not seen, and goes when the disk grows again: the disk has its new size.
      if (!(error instanceof LunetteError) || error.code === 'INTERNAL') throw error;
    }
  }
}

/**
 * What resizing needs of an image, as far as its header says it.
 *
 * @throws {ImageError} TOO_LARGE, UNSUPPORTED; {LunetteError} INVALID
 */
export function checkResize(change: {
  from: number;
  to: number;
  hasSnapshots: boolean;
  geometry: Geometry;
  shrink: boolean;
  path: string;
}): void {
  const { from, to, geometry, path } = change;
  if (to % 512 !== 0) throw new LunetteError('INVALID', `a size of ${to} bytes is no multiple of 512`, { path });
  if (geometry.version === 2 && change.hasSnapshots) {
    throw new ImageError(
      'UNSUPPORTED',
      'an image of version 2 with snapshots cannot be resized: its snapshots do not know their size',
      { path },
    );
  }
  if (to < from && !change.shrink) {
    throw new LunetteError('INVALID', `${to} bytes are less than it has: what is behind the new end would be lost`, {
      path,
      help: 'lunette resize --shrink makes a disk smaller.',
    });
  }
  if (divideUp(to, geometry.l2Coverage) * 8 > MAX_L1_BYTES) {
    throw new ImageError('TOO_LARGE', `${to} bytes are too many for clusters of ${geometry.clusterSize} bytes`, {
      path,
    });
  }
}

/**
 * Makes an external data file long enough. What it has behind the disk's old end is not the disk's.
 *
 * @param shown all of the new space will be seen as it is, not only the rest of the cluster that the old end cuts
 */
async function growDataFile(host: ResizeHost, from: number, to: number, shown: boolean): Promise<void> {
  const { dataStorage, payload, geometry } = host.state.parts;
  const end = Math.min(to, dataStorage.size, shown ? to : alignUp(from, geometry.clusterSize));
  if (end > from) await zeroFill(payload, from, end - from);
  if (dataStorage.size >= to) return;
  if (!dataStorage.growsZeroed) {
    throw new ImageError('TOO_LARGE', `the device with its data is smaller than ${to} bytes`, {
      path: dataStorage.path,
    });
  }
  await dataStorage.resize(to);
}

/** Moves the L1 table to where it has room for more entries. */
async function growL1(host: ResizeHost, entries: number): Promise<void> {
  const { state } = host;
  const { l1, allocator, geometry, storage, metadata, slices } = state.parts;
  const { clusterSize, slicesPerCluster } = geometry;
  const bytes = new Uint8Array(divideUp(entries * 8, clusterSize) * clusterSize);
  bytes.set(l1.copy());
  const count = bytes.length / clusterSize;
  const first = await state.change(() => allocator.allocateTogether(count));
  const offset = first * clusterSize;
  try {
    slices.forget(first * slicesPerCluster, count * slicesPerCluster);
    await storage.writev(offset, IoVec.of(bytes));
    await host.flush();
    await host.switchHeader((view) => HEADER_V2.write(view, { l1TableOffset: offset, l1Size: entries }));
  } catch (error) {
    if (state.stopped === undefined) await state.change(() => allocator.free(first, count)).catch(() => undefined);
    throw error;
  }
  if (l1.byteLength > 0) state.unlinked.add(l1.offset / clusterSize, divideUp(l1.byteLength, clusterSize), true);
  metadata.add(offset, bytes.length);
  l1.replace(offset, bytes.slice(0, entries * 8));
}

/** Unmaps everything from a guest offset on, VM state that a snapshot left there included. Tables that do not exist are not made. */
async function dropBehind(host: ResizeHost, size: number): Promise<void> {
  const { l1, geometry } = host.state.parts;
  const { l2Coverage, clusterSize } = geometry;
  const start = alignUp(size, clusterSize);
  for (let index = Math.floor(start / l2Coverage); index < l1.entries; index++) {
    if (l1.checkedTarget(index) === 0) continue;
    const from = Math.max(start, index * l2Coverage);
    if (from === index * l2Coverage) await dropTable(host, index);
    else await host.zeroRange(from, (index + 1) * l2Coverage - from, 'deallocate');
  }
}

/** Unmaps everything: the file holds nothing of the disk any more. VM state that a snapshot left in the active tables goes as well. */
export async function dropAll(host: ResizeHost): Promise<void> {
  const { l1 } = host.state.parts;
  for (let index = 0; index < l1.entries; index++) {
    if (l1.checkedTarget(index) !== 0) await dropTable(host, index);
  }
}

/** Unmaps an L2 table with all that it refers to. */
async function dropTable(host: ResizeHost, index: number): Promise<void> {
  const { state } = host;
  const { l1, slices, geometry } = state.parts;
  const { clusterSize, sliceSize, slicesPerCluster, sliceEntries, entrySize, l2Coverage } = geometry;
  await state.change(async () => {
    const table = l1.checkedTarget(index);
    if (state.parts.brokenTables.has(index)) {
      throw new ImageError('CORRUPT', `L1 entry ${index} points to a table that is something else as well`, {
        path: state.parts.storage.path,
        field: 'L1 table',
        offset: l1.offset + index * 8,
      });
    }
    const entry = new EntryView();
    const first = table / sliceSize;
    let held = 0;
    try {
      // All of it is in memory, and looked at, before anything is dropped: from then on nothing waits, so nothing fails half done.
      for (; held < slicesPerCluster; held++) await slices.hold(first + held, 'mapping');
      for (const drop of [false, true]) {
        for (let i = 0; i < slicesPerCluster; i++) {
          const bytes = slices.peek(first + i) as Uint8Array;
          for (let j = 0; j < sliceEntries; j++) {
            const guest = index * l2Coverage + (i * sliceEntries + j) * clusterSize;
            entry.read(state, bytes, j * entrySize, (first + i) * sliceSize, guest);
            if (drop) entry.unlink(state, guest, true);
          }
        }
      }
      l1.set(index, 0, false);
      state.unlinked.add(table / clusterSize, 1, true);
    } finally {
      for (let i = 0; i < held; i++) slices.unhold(first + i);
    }
  });
  if (state.parts.cache.pinnedFull) await host.flush();
}

/** Says "zeros" of new clusters in which a longer parent would show. */
async function coverParent(host: ResizeHost, size: number, end: number, mode: 'unmap' | 'keep'): Promise<void> {
  const { geometry, storage } = host.state.parts;
  const start = alignUp(size, geometry.clusterSize);
  if (start >= end) return;
  if (geometry.version === 2) {
    throw new ImageError('UNSUPPORTED', 'version 2 cannot hide what a longer backing file has behind the old end', {
      path: storage.path,
    });
  }
  await host.zeroRange(start, end - start, mode);
}
