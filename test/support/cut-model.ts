/** What a disk may show after a power cut: every byte as of the last flush that had ended, or as something written since made it. */

import type { PowerCutStorage } from './power-cut-storage.ts';

const CHUNK = 512;

interface Change {
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly issuedAt: number;
  completedAt: number;
}

interface FlushSpan {
  readonly issuedAt: number;
  completedAt: number;
}

/** A change of the disk as a whole (a snapshot applied, another size): alone, at once, and durable when it is over. */
interface Replacement {
  readonly bytes: Uint8Array;
  readonly issuedAt: number;
  completedAt: number;
}

/** An internal snapshot: certainly there from `takenAt` to `deletingAt`, certainly not before `takingAt` and after `deletedAt`. */
interface TakenSnapshot {
  readonly bytes: Uint8Array;
  readonly takingAt: number;
  takenAt: number;
  deletingAt: number;
  deletedAt: number;
}

export class CutModel {
  /** What the disk shows now, when every call issued so far completes. */
  current: Uint8Array;
  /** By name; names are never used twice. */
  readonly snapshots = new Map<string, TakenSnapshot>();
  readonly #replacements: Replacement[] = [];
  readonly #initial: Uint8Array;
  readonly #storage: PowerCutStorage;
  readonly #changes: Change[] = [];
  readonly #flushes: FlushSpan[] = [];

  constructor(storage: PowerCutStorage, initial: Uint8Array) {
    this.#storage = storage;
    this.#initial = initial.slice();
    this.current = initial.slice();
  }

  /** Notes a change that begins now and is over when `done` has resolved; one that fails may or may not have happened. */
  async change(offset: number, bytes: Uint8Array, done: () => Promise<void>): Promise<void> {
    const change: Change = { offset, bytes, issuedAt: this.#storage.now++, completedAt: Number.POSITIVE_INFINITY };
    this.#changes.push(change);
    const before = this.current.slice(offset, offset + bytes.length);
    this.current.set(bytes, offset);
    try {
      await done();
      change.completedAt = this.#storage.now++;
    } catch (error) {
      this.current.set(before, offset);
      throw error;
    }
  }

  /** Notes a change of the whole disk; nothing else may be in flight. One that fails may have happened or not. */
  async replace(bytes: Uint8Array, done: () => Promise<void>): Promise<void> {
    const replacement: Replacement = {
      bytes,
      issuedAt: this.#storage.now++,
      completedAt: Number.POSITIVE_INFINITY,
    };
    this.#replacements.push(replacement);
    await done();
    replacement.completedAt = this.#storage.now++;
    this.current = bytes.slice();
  }

  async takeSnapshot(name: string, done: () => Promise<unknown>): Promise<void> {
    const never = Number.POSITIVE_INFINITY;
    const takingAt = this.#storage.now++;
    const snapshot = { bytes: this.current.slice(), takingAt, takenAt: never, deletingAt: never, deletedAt: never };
    this.snapshots.set(name, snapshot);
    await done();
    snapshot.takenAt = this.#storage.now++;
  }

  async deleteSnapshot(name: string, done: () => Promise<void>): Promise<void> {
    const snapshot = this.snapshots.get(name) as TakenSnapshot;
    snapshot.deletingAt = this.#storage.now++;
    await done();
    snapshot.deletedAt = this.#storage.now++;
  }

  /** Names of snapshots that are there now, for sure. */
  get present(): string[] {
    return [...this.snapshots]
      .filter(([, { takenAt, deletingAt }]) => takenAt < deletingAt && deletingAt === Number.POSITIVE_INFINITY)
      .map(([name]) => name);
  }

  async flush(done: () => Promise<void>): Promise<void> {
    const span: FlushSpan = { issuedAt: this.#storage.now++, completedAt: Number.POSITIVE_INFINITY };
    await done();
    span.completedAt = this.#storage.now++;
    this.#flushes.push(span);
  }

  /** Whether snapshots or size have begun to change before step `at`. */
  restructuredBefore(at: number): boolean {
    if (this.#replacements.some(({ issuedAt }) => issuedAt < at)) return true;
    return [...this.snapshots.values()].some(
      ({ takingAt, deletingAt }) => (takingAt >= 0 && takingAt < at) || deletingAt < at,
    );
  }

  /** Compares what a cut at step `at` left with what it may leave. @returns the first byte that is wrong, or -1 */
  judge(at: number, found: Uint8Array): number {
    const now = this.#replacements.filter(({ issuedAt, completedAt }) => issuedAt < at && !(completedAt < at));
    if (now.some(({ bytes }) => Buffer.compare(bytes, found) === 0)) return -1;
    const last = this.#replacements.filter(({ completedAt }) => completedAt < at).pop();
    const since = last?.completedAt ?? -1;
    let flushed = -1;
    for (const flush of this.#flushes) if (flush.completedAt < at) flushed = Math.max(flushed, flush.issuedAt);
    const base = (last?.bytes ?? this.#initial).slice();
    if (found.length !== base.length) return Math.min(found.length, base.length);
    const open: Change[] = [];
    for (const change of this.#changes) {
      if (change.issuedAt < since) continue;
      if (change.completedAt < flushed) base.set(change.bytes, change.offset);
      else if (change.issuedAt < at) open.push(change);
    }
    for (let i = 0; i < base.length; i++) {
      if (i % CHUNK === 0 && Buffer.compare(found.subarray(i, i + CHUNK), base.subarray(i, i + CHUNK)) === 0) {
        i += CHUNK - 1; // most of it is as it was
        continue;
      }
      if (found[i] === base[i]) continue;
      const allowed = open.some(
        ({ offset, bytes }) => i >= offset && i < offset + bytes.length && bytes[i - offset] === found[i],
      );
      if (!allowed) return i;
    }
    return -1;
  }
}
