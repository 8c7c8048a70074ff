/** A storage that remembers every write and sync, and can show what a power cut may leave of them. */

import path from 'node:path';
import { StorageError } from '../../formats/core/errors.ts';
import type { IoVec } from '../../formats/core/iov.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import type { Random } from './random.ts';

const SECTOR = 512;

interface WriteEvent {
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly issuedAt: number;
  completedAt: number;
}

/**
 * Memory that is written through a cache which a power cut loses: what was written but not synced may be there or not, sector by sector, in any
 * order. Every asynchronous call takes a random number of turns, so that calls overlap as they do on a disk.
 */
export class PowerCutStorage implements Storage {
  readonly id = 'power-cut';
  readonly path: string;
  readonly readOnly = false;
  readonly align = 1;
  readonly fd = null;
  readonly growsZeroed: boolean;
  readonly discards = true;
  maxSize = Number.MAX_SAFE_INTEGER;
  /** Thrown by the next calls, when it answers true. */
  failing: (call: 'read' | 'write' | 'sync') => boolean = () => false;
  /** What a write that fails says. */
  failure: 'IO' | 'NO_SPACE' = 'IO';
  /** A write that fails has brought some of its bytes into the file, as a short one does. */
  tears = false;
  /** Steps so far: writes begun and ended, syncs begun and ended. A cut happens between two of them. Files of one disk share it. */
  readonly clock: { now: number };
  /** A write that was tried without waiting has been chosen to fail. */
  #failsNext = false;
  #syncFailed = false;
  readonly #random: Random;
  readonly #initial: Uint8Array;
  #bytes: Uint8Array;
  #size: number;
  readonly #writes: WriteEvent[] = [];
  readonly #syncs: { issuedAt: number; completedAt: number }[] = [];

  /**
   * @param options.clock of the other files of the same disk
   * @param options.spare makes it a block device: so many bytes follow, which hold anything; it does not grow, nor discard to zeros
   */
  constructor(
    random: Random,
    initial: Uint8Array,
    options: { path?: string; spare?: number; clock?: { now: number } } = {},
  ) {
    this.#random = random;
    this.clock = options.clock ?? { now: 0 };
    this.growsZeroed = options.spare === undefined;
    this.#initial = new Uint8Array(initial.length + (options.spare ?? 0)).fill(0xdd);
    this.#initial.set(initial);
    this.#bytes = this.#initial.slice();
    this.#size = this.#initial.length;
    this.path = options.path ?? '/cut/image';
  }

  get now(): number {
    return this.clock.now;
  }

  set now(step: number) {
    this.clock.now = step;
  }

  get size(): number {
    return this.#size;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    if (this.#random.chance(0.3)) return false;
    this.#read(offset, iov);
    return true;
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    await this.#turns();
    if (this.failing('read')) throw new StorageError('IO', 'injected failure of a read', { path: this.path });
    this.#read(offset, iov);
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    const room = this.growsZeroed ? this.maxSize : this.#initial.length;
    if (this.#random.chance(0.5) || offset + iov.byteLength > room) return false;
    // What fails is met again, and reported, by writev().
    this.#failsNext = this.failing('write');
    if (this.#failsNext) return false;
    this.#begin(offset, flatten(iov)).completedAt = this.now++;
    return true;
  }

  async writev(offset: number, iov: IoVec): Promise<void> {
    await this.#write(offset, flatten(iov));
  }

  async writeZeroes(offset: number, length: number): Promise<boolean> {
    if (this.#random.chance(0.3) || (!this.growsZeroed && offset + length > this.#size)) return false;
    await this.#write(offset, new Uint8Array(length));
    return true;
  }

  async discard(offset: number, length: number): Promise<boolean> {
    const inside = Math.min(length, Math.max(0, this.#size - offset));
    const shown = this.growsZeroed ? 0 : this.#random.below(256);
    if (inside > 0) await this.#write(offset, new Uint8Array(inside).fill(shown));
    return true;
  }

  async copyFrom(): Promise<number> {
    return 0;
  }

  async nextData(offset: number): Promise<number> {
    return offset;
  }

  async nextHole(): Promise<number> {
    return this.#size;
  }

  async resize(size: number): Promise<void> {
    if (!this.growsZeroed) throw new StorageError('INVALID', 'a device keeps its size', { path: this.path });
    // Done whole or not at all.
    const { tears } = this;
    this.tears = false;
    const old = this.#size;
    // What is cut off reads as zeros when the file grows again; a power cut may bring back that it was longer.
    const done = size === old ? undefined : this.#write(Math.min(old, size), new Uint8Array(Math.abs(size - old)));
    this.tears = tears;
    await done;
    if (size < old) this.#size = size;
  }

  /** After a failure what had been written may never get to the disk, whatever comes later. */
  async sync(): Promise<void> {
    const issuedAt = this.now++;
    await this.#turns();
    if (this.#syncFailed || this.failing('sync')) {
      this.#syncFailed = true;
      throw new StorageError('IO', 'injected failure of sync', { path: this.path });
    }
    this.#syncs.push({ issuedAt, completedAt: this.now++ });
  }

  async lock(): Promise<void> {}

  resolve(reference: string): string {
    return path.isAbsolute(reference) ? reference : path.join(path.dirname(this.path), reference);
  }

  async close(): Promise<void> {}

  /** What is in the file now, cache included. */
  toBytes(): Uint8Array {
    return this.#bytes.slice(0, this.#size);
  }

  /**
   * What the disk may hold when the power goes at step `at`: everything that a sync had made durable, and any of the sectors written since.
   *
   * @param keep probability that a sector that was not synced is there
   */
  cut(random: Random, at: number, keep: number): Uint8Array {
    let durable = -1;
    for (const sync of this.#syncs) if (sync.completedAt < at) durable = Math.max(durable, sync.issuedAt);
    const sure = this.#writes.filter((write) => write.completedAt < durable);
    const perhaps = this.#writes.filter((write) => write.issuedAt < at && !(write.completedAt < durable));
    const sectors: { offset: number; bytes: Uint8Array }[] = [];
    for (const { offset, bytes } of perhaps) {
      for (let from = 0; from < bytes.length; ) {
        const take = Math.min(SECTOR - ((offset + from) % SECTOR), bytes.length - from);
        if (random.chance(keep)) sectors.push({ offset: offset + from, bytes: bytes.subarray(from, from + take) });
        from += take;
      }
    }
    random.shuffle(sectors);
    const all = [...sure, ...sectors];
    const size = all.reduce((most, { offset, bytes }) => Math.max(most, offset + bytes.length), this.#initial.length);
    const result = new Uint8Array(size);
    result.set(this.#initial);
    for (const { offset, bytes } of all) result.set(bytes, offset);
    return result;
  }

  async #write(offset: number, bytes: Uint8Array): Promise<void> {
    const fails = this.#failsNext || this.failing('write');
    this.#failsNext = false;
    const room = this.growsZeroed ? this.maxSize : this.#initial.length;
    const fits = Math.max(0, Math.min(bytes.length, room - offset));
    if (this.tears && (fails || fits < bytes.length)) await this.#tear(offset, bytes.subarray(0, fits));
    if (fails) throw new StorageError(this.failure, 'injected failure of a write', { path: this.path });
    if (fits < bytes.length) throw new StorageError('NO_SPACE', 'no space left', { path: this.path });
    const event = this.#begin(offset, bytes);
    await this.#turns();
    event.completedAt = this.now++;
  }

  /** Sectors from the start on, perhaps all of them. */
  async #tear(offset: number, bytes: Uint8Array): Promise<void> {
    const sectors = Math.ceil((offset + bytes.length) / SECTOR) - Math.floor(offset / SECTOR);
    const stop = (Math.floor(offset / SECTOR) + this.#random.below(sectors + 1)) * SECTOR;
    const length = Math.min(bytes.length, Math.max(0, stop - offset));
    if (length === 0) return;
    const event = this.#begin(offset, bytes.slice(0, length));
    await this.#turns();
    event.completedAt = this.now++;
  }

  #begin(offset: number, bytes: Uint8Array): WriteEvent {
    const end = offset + bytes.length;
    if (end > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(end, this.#bytes.length * 2));
      grown.set(this.#bytes);
      this.#bytes = grown;
    }
    this.#bytes.set(bytes, offset);
    this.#size = Math.max(this.#size, end);
    const event = { offset, bytes, issuedAt: this.now++, completedAt: Number.POSITIVE_INFINITY };
    this.#writes.push(event);
    return event;
  }

  #read(offset: number, iov: IoVec): void {
    const inside = Math.max(0, Math.min(iov.byteLength, this.#size - offset));
    iov.copyIn(0, this.#bytes.subarray(offset, offset + inside));
    iov.fill(inside, iov.byteLength - inside);
  }

  async #turns(): Promise<void> {
    for (let turns = this.#random.below(4); turns > 0; turns--) await Promise.resolve();
    if (this.#random.chance(0.05)) await new Promise((resolve) => setImmediate(resolve));
  }
}

function flatten(iov: IoVec): Uint8Array {
  const bytes = new Uint8Array(iov.byteLength);
  iov.copyOut(0, bytes);
  return bytes;
}
