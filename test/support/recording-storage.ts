/** A storage that remembers every write and sync, and can show what a power cut may leave of them. */

import { IoVec } from '../../formats/core/iov.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import type { LockMode, Storage } from '../../formats/storage/storage.ts';
import type { Random } from './random.ts';

const SECTOR = 512;

type Change =
  | { readonly kind: 'write'; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly kind: 'zero'; readonly offset: number; readonly length: number }
  | { readonly kind: 'resize'; readonly size: number };

type Entry =
  | { readonly kind: 'change'; readonly file: RecordingStorage; readonly change: Change }
  /** A sync has ended: the entries before `before` are durable. */
  | { readonly kind: 'synced'; readonly file: RecordingStorage; readonly before: number };

/** What happened to the files of one disk, in order. */
export class PowerLog {
  readonly files: RecordingStorage[] = [];
  readonly entries: Entry[] = [];

  file(path = `/memory/file-${this.files.length}`, bytes: Uint8Array = new Uint8Array(0)): RecordingStorage {
    const file = new RecordingStorage(this, path, bytes);
    this.files.push(file);
    return file;
  }

  get length(): number {
    return this.entries.length;
  }

  /** What each file may hold when the power goes before entry `at`. */
  cut(at: number, random: Random): Map<RecordingStorage, MemoryStorage> {
    const left = new Map<RecordingStorage, MemoryStorage>();
    for (const file of this.files) left.set(file, this.#cutFile(file, at, random));
    return left;
  }

  #cutFile(file: RecordingStorage, at: number, random: Random): MemoryStorage {
    let durable = 0;
    for (const entry of this.entries.slice(0, at)) {
      if (entry.kind === 'synced' && entry.file === file) durable = Math.max(durable, entry.before);
    }
    const storage = new MemoryStorage({ path: file.path, bytes: file.initial });
    const loose: Change[] = [];
    for (const [i, entry] of this.entries.slice(0, at).entries()) {
      if (entry.kind !== 'change' || entry.file !== file) continue;
      if (i < durable) apply(storage, entry.change);
      else loose.push(entry.change);
    }
    // All, none, or any of what was not synced; in any order; sector by sector.
    const keep = random.pick([0, 1, random.fraction()]);
    const rest = loose.filter(() => random.chance(keep));
    if (random.chance(0.5)) random.shuffle(rest);
    for (const change of rest) {
      for (const piece of pieces(change)) if (random.chance(random.pick([1, 0.5]))) apply(storage, piece);
    }
    return storage;
  }
}

/** A write in the pieces that a disk does whole or not at all. */
function pieces(change: Change): Change[] {
  if (change.kind !== 'write') return [change];
  const list: Change[] = [];
  for (let at = change.offset; at < change.offset + change.bytes.length; ) {
    const end = Math.min(change.offset + change.bytes.length, (Math.floor(at / SECTOR) + 1) * SECTOR);
    list.push({ kind: 'write', offset: at, bytes: change.bytes.subarray(at - change.offset, end - change.offset) });
    at = end;
  }
  return list;
}

function apply(storage: MemoryStorage, change: Change): void {
  // Memory does it at once.
  if (change.kind === 'write') void storage.writev(change.offset, IoVec.of(change.bytes));
  else if (change.kind === 'zero') void storage.writeZeroes(change.offset, change.length, true);
  else void storage.resize(change.size);
}

/** One file of a PowerLog. Closing keeps its bytes. */
export class RecordingStorage implements Storage {
  readonly id: string;
  readonly path: string;
  readonly readOnly = false;
  readonly align = 1;
  readonly fd = null;
  readonly growsZeroed = true;
  readonly discards = true;
  readonly initial: Uint8Array;
  /** Syncs that have ended. */
  syncs = 0;
  readonly #log: PowerLog;
  readonly #memory: MemoryStorage;

  constructor(log: PowerLog, path: string, bytes: Uint8Array) {
    this.#log = log;
    this.path = path;
    this.initial = bytes;
    this.#memory = new MemoryStorage({ path, bytes });
    this.id = this.#memory.id;
  }

  get size(): number {
    return this.#memory.size;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    return this.#memory.tryReadv(offset, iov);
  }

  readv(offset: number, iov: IoVec): Promise<void> {
    return this.#memory.readv(offset, iov);
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    if (!this.#memory.tryWritev(offset, iov)) return false;
    this.#record({ kind: 'write', offset, bytes: iov.contiguous().slice() });
    return true;
  }

  writev(offset: number, iov: IoVec): Promise<void> {
    this.#record({ kind: 'write', offset, bytes: iov.contiguous().slice() });
    return this.#memory.writev(offset, iov);
  }

  writeZeroes(offset: number, length: number, unmap: boolean): Promise<boolean> {
    this.#record({ kind: 'zero', offset, length });
    return this.#memory.writeZeroes(offset, length, unmap);
  }

  discard(offset: number, length: number): Promise<boolean> {
    const inside = Math.max(0, Math.min(length, this.size - offset));
    if (inside > 0) this.#record({ kind: 'zero', offset, length: inside });
    return this.#memory.discard(offset, length);
  }

  copyFrom(): Promise<number> {
    return this.#memory.copyFrom();
  }

  nextData(offset: number): Promise<number> {
    return this.#memory.nextData(offset);
  }

  nextHole(offset: number): Promise<number> {
    return this.#memory.nextHole(offset);
  }

  resize(size: number): Promise<void> {
    this.#record({ kind: 'resize', size });
    return this.#memory.resize(size);
  }

  /** Covers what had been written when it was called. */
  async sync(): Promise<void> {
    const before = this.#log.entries.length;
    await new Promise((resolve) => setImmediate(resolve));
    this.syncs++;
    this.#log.entries.push({ kind: 'synced', file: this, before });
  }

  async lock(_mode: LockMode): Promise<void> {}

  resolve(reference: string): string {
    return this.#memory.resolve(reference);
  }

  async close(): Promise<void> {}

  toBytes(): Uint8Array {
    return this.#memory.toBytes();
  }

  #record(change: Change): void {
    this.#log.entries.push({ kind: 'change', file: this, change });
  }
}
