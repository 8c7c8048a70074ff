/** Whether a disk keeps its promises over power cuts: what was flushed is there, and every sector holds something it was told to hold. */

import assert from 'node:assert/strict';
import { IoVec } from '../../formats/core/iov.ts';
import type { Image } from '../../formats/image/image.ts';
import type { MemoryStorage } from '../../formats/storage/memory.ts';
import type { Random } from './random.ts';
import type { PowerLog, RecordingStorage } from './recording-storage.ts';

const SECTOR = 512;

export interface PowerCutDisk {
  readonly log: PowerLog;
  readonly image: Image;
  /** The disk on what a cut has left; also checks metadata. */
  reopen(left: Map<RecordingStorage, MemoryStorage>): Promise<Image>;
  /** First word of each sector when the log begins. Default: zeros. */
  readonly initial?: Uint32Array;
  /** Changes per run. Default 60. */
  readonly changes?: number;
  /** Cuts per run. Default 40. */
  readonly cuts?: number;
  /** Whether a range of sectors takes changes. Default: all do. */
  readonly isWritable?: (first: number, count: number) => boolean;
  /** Multiple of sectors of the larger changes. */
  readonly unit: number;
}

/** A value of a sector, and when it was asked for. */
interface Stamp {
  /** Position in the log when the change began. */
  readonly at: number;
  readonly value: number;
  /** Number of the event in which the change ended. */
  done: number;
}

/**
 * Changes a disk at random, then cuts the power at many moments of the log and looks at each sector: it must hold what it held at
 * the last flush that had ended, or something that was written to it since.
 */
export async function powerCutRun(random: Random, disk: PowerCutDisk): Promise<void> {
  const { log, image } = disk;
  const sectors = image.size / SECTOR;
  const history: Stamp[][] = Array.from({ length: sectors }, (_, i) => [
    { at: -1, value: disk.initial?.[i] ?? 0, done: -1 },
  ]);
  /** Events in which flushes began, and the positions in the log where they had ended. */
  const flushes: { began: number; ended: number }[] = [];
  let events = 0;
  let written = 1;
  const flush = async (): Promise<void> => {
    const began = events++;
    await image.flush();
    flushes.push({ began, ended: log.length });
  };
  /** All sectors of a range get these values, in turn, while `act` runs. */
  const during = async (first: number, count: number, values: number[], act: () => Promise<void>): Promise<void> => {
    const at = log.length;
    const stamps: Stamp[] = [];
    for (let i = first; i < first + count; i++) {
      for (const value of values) {
        const stamp = { at, value, done: Number.POSITIVE_INFINITY };
        stamps.push(stamp);
        (history[i] as Stamp[]).push(stamp);
      }
    }
    await act();
    const done = events++;
    for (const stamp of stamps) stamp.done = done;
  };
  const change = async (): Promise<void> => {
    const unitSectors = disk.unit / SECTOR;
    const count = Math.min(sectors, random.chance(0.4) ? unitSectors * random.between(1, 3) : random.between(1, 20));
    let first = random.below(sectors - count + 1);
    if (random.chance(0.5)) first -= first % unitSectors;
    if (disk.isWritable?.(first, count) === false) return;
    const kind = random.below(10);
    if (kind >= 7) {
      return during(first, count, [0], () => image.writeZeroes(first * SECTOR, count * SECTOR, kind === 8));
    }
    const value = written++;
    const bytes = new Uint8Array(count * SECTOR);
    new Uint32Array(bytes.buffer).fill(value);
    const list = IoVec.of(bytes);
    return during(first, count, [value], async () => {
      if (!image.tryWritev(first * SECTOR, list)) await image.writev(first * SECTOR, list);
    });
  };
  /** Parts of units keep their data, and a discard may do nothing: afterwards the disk itself says what it holds. */
  const discard = async (): Promise<void> => {
    const count = Math.min(sectors, (disk.unit / SECTOR) * random.between(1, 3));
    const first = random.below(sectors - count + 1);
    if (disk.isWritable?.(first, count) === false) return;
    await during(first, count, [0], async () => {
      await image.discard(first * SECTOR, count * SECTOR);
    });
    const bytes = new Uint8Array(count * SECTOR);
    await image.readv(first * SECTOR, IoVec.of(bytes));
    const words = new Uint32Array(bytes.buffer);
    for (let i = 0; i < count; i++) {
      const list = history[first + i] as Stamp[];
      const value = words[(i * SECTOR) / 4] as number;
      list.push({ at: (list.at(-1) as Stamp).at, value, done: (list.at(-1) as Stamp).done });
    }
  };
  for (let i = disk.changes ?? 60; i > 0; i--) {
    if (random.chance(0.15)) await Promise.all([change(), flush(), change()]);
    else if (random.chance(0.1)) await discard();
    else await change();
    if (random.chance(0.1)) await flush();
  }
  if (random.chance(0.5)) await image.close();
  for (let i = disk.cuts ?? 40; i > 0; i--) {
    const at = random.between(0, log.length);
    const left = log.cut(at, random);
    const reopened = await disk.reopen(left);
    const last = flushes.filter(({ ended }) => ended <= at).at(-1);
    await checkSectors(reopened, history, last?.began ?? 0, at);
    await reopened.close();
  }
}

async function checkSectors(image: Image, history: Stamp[][], flushed: number, at: number): Promise<void> {
  const bytes = new Uint8Array(image.size);
  await image.readv(0, IoVec.of(bytes));
  const words = new Uint32Array(bytes.buffer);
  for (const [sector, stamps] of history.entries()) {
    const value = words[(sector * SECTOR) / 4] as number;
    // The last that had ended when the flush began; what came later may be there or not.
    const base = stamps.findLastIndex((stamp) => stamp.done < flushed);
    const allowed = stamps.slice(Math.max(0, base)).filter((stamp) => stamp.at <= at);
    if (!allowed.some((stamp) => stamp.value === value)) {
      assert.fail(
        `cut before ${at}, flushed ${flushed}: sector ${sector} holds ${value}, not one of ${JSON.stringify(allowed)}`,
      );
    }
    const part = words.subarray((sector * SECTOR) / 4, ((sector + 1) * SECTOR) / 4);
    assert.ok(
      part.every((word) => word === value),
      `sector ${sector} is a mix`,
    );
  }
}
