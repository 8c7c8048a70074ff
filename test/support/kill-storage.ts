import { StorageError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import type { Random } from './random.ts';
import { SECTOR } from './sector-model.ts';

/** Of calls that could be answered at once. */
const AT_ONCE = { read: 0.6, write: 0.5 };

/**
 * A file as the system keeps it for a process that may be killed at any moment: toBytes() is what the process would leave behind.
 *
 * What a call changes gets in some turns after the call, the sectors of a write one by one and other calls in between, and the caller hears
 * of it some turns later still. Power cuts are another matter (see PowerCutStorage): what has got in stays, synced or not.
 */
export class KillStorage extends MemoryStorage {
  /** Whether a call fails with EIO; a write that fails so has changed nothing. Without room (maxSize) some of it gets in. */
  failing: (call: 'read' | 'write') => boolean = () => false;
  readonly #random: Random;

  constructor(random: Random, bytes: Uint8Array) {
    super({ bytes });
    this.#random = random;
  }

  override tryReadv(offset: number, iov: IoVec): boolean {
    return this.#random.chance(AT_ONCE.read) && super.tryReadv(offset, iov);
  }

  override async readv(offset: number, iov: IoVec): Promise<void> {
    await this.#turns();
    this.#mayFail('read', offset);
    super.tryReadv(offset, iov);
    await this.#turns();
  }

  override tryWritev(offset: number, iov: IoVec): boolean {
    return this.#random.chance(AT_ONCE.write) && !this.failing('write') && super.tryWritev(offset, iov);
  }

  override async writev(offset: number, iov: IoVec): Promise<void> {
    await this.#turns();
    // What the buffers hold then: the system reads them late.
    const bytes = new Uint8Array(iov.byteLength);
    iov.copyOut(0, bytes);
    this.#mayFail('write', offset);
    for (let at = 0; at < bytes.length; at += SECTOR) {
      await super.writev(offset + at, IoVec.of(bytes.subarray(at, at + SECTOR)));
    }
    await this.#turns();
  }

  override async writeZeroes(offset: number, length: number, unmap: boolean): Promise<boolean> {
    await this.#turns();
    // Not every file system can.
    if (this.#random.chance(0.3)) return false;
    const done = await super.writeZeroes(offset, length, unmap);
    await this.#turns();
    return done;
  }

  override async discard(offset: number, length: number): Promise<boolean> {
    await this.#turns();
    const done = await super.discard(offset, length);
    await this.#turns();
    return done;
  }

  override async resize(size: number): Promise<void> {
    await this.#turns();
    await super.resize(size);
    await this.#turns();
  }

  override async sync(): Promise<void> {
    await this.#turns();
    await super.sync();
    await this.#turns();
  }

  async #turns(): Promise<void> {
    for (let n = this.#random.below(5); n > 0; n--) await Promise.resolve();
    if (this.#random.chance(0.1)) await new Promise((resolve) => setImmediate(resolve));
  }

  #mayFail(call: 'read' | 'write', offset: number): void {
    if (this.failing(call)) throw new StorageError('IO', 'injected failure', { path: this.path, offset });
  }
}
