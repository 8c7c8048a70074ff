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

export class CutModel {
  /** What the disk shows now, when every call issued so far completes. */
  readonly current: Uint8Array;
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

  async flush(done: () => Promise<void>): Promise<void> {
    const span: FlushSpan = { issuedAt: this.#storage.now++, completedAt: Number.POSITIVE_INFINITY };
    await done();
    span.completedAt = this.#storage.now++;
    this.#flushes.push(span);
  }

  /** Compares what a cut at step `at` left with what it may leave. @returns the first byte that is wrong, or -1 */
  judge(at: number, found: Uint8Array): number {
    let flushed = -1;
    for (const flush of this.#flushes) if (flush.completedAt < at) flushed = Math.max(flushed, flush.issuedAt);
    const base = this.#initial.slice();
    const open: Change[] = [];
    for (const change of this.#changes) {
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
