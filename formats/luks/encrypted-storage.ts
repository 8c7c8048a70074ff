import { IoVec } from '../core/iov.ts';
import { RangeLock } from '../core/range-lock.ts';
import { alignDown, alignUp, KiB } from '../core/units.ts';
import type { LockMode, Storage } from '../storage/storage.ts';
import { SECTOR } from './header.ts';
import type { SectorCipher } from './sector-cipher.ts';

/** Bytes that are encrypted in one tick, and in one buffer. */
const CHUNK = 256 * KiB;
/** Buffers that are kept for the next request. */
const KEPT = 4;

/**
 * The payload of an encrypted image: what is read was decrypted, what is written is encrypted, sector by sector of the storage below,
 * whose numbers are the initialization vectors. Nobody above sees the encrypted bytes: there is no descriptor, no kernel copy, and space
 * that the file system made zeros is no zeros.
 *
 * A write that begins or ends inside a sector reads that sector first; nobody else may be in it then.
 */
export class EncryptedStorage implements Storage {
  readonly id: string;
  readonly path: string;
  readonly align = 1;
  readonly fd = null;
  readonly growsZeroed = false;
  readonly #below: Storage;
  readonly #cipher: SectorCipher;
  /** Sectors that are written in part: they are read first. */
  readonly #partial = new RangeLock();
  /** Reads in flight: a sector that changes under one would be decrypted wrongly. */
  readonly #reads = new Set<Promise<void>>();
  readonly #buffers: Uint8Array[] = [];
  /** For the calls that do not wait. */
  readonly #scratch = new Uint8Array(64 * KiB);

  constructor(below: Storage, cipher: SectorCipher) {
    this.#below = below;
    this.#cipher = cipher;
    this.id = `${below.id}+decrypted`;
    this.path = below.path;
  }

  get size(): number {
    return this.#below.size;
  }

  get readOnly(): boolean {
    return this.#below.readOnly;
  }

  get discards(): boolean {
    return this.#below.discards;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    const start = alignDown(offset, SECTOR);
    const length = alignUp(offset + iov.byteLength, SECTOR) - start;
    if (length > this.#scratch.length || this.#partial.overlaps(start, length)) return false;
    const bytes = this.#scratch.subarray(0, length);
    if (!this.#below.tryReadv(start, IoVec.of(bytes))) return false;
    this.#cipher.decrypt(bytes, start / SECTOR);
    iov.copyIn(0, bytes.subarray(offset - start, offset - start + iov.byteLength));
    return true;
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    await this.#partial.passed(alignDown(offset, SECTOR), alignUp(offset + iov.byteLength, SECTOR) - offset);
    const reading = this.#read(offset, iov);
    const settled = reading.catch(() => undefined);
    this.#reads.add(settled);
    try {
      await reading;
    } finally {
      this.#reads.delete(settled);
    }
  }

  async #read(offset: number, iov: IoVec): Promise<void> {
    const end = offset + iov.byteLength;
    const buffer = this.#borrow();
    try {
      for (let at = offset; at < end; ) {
        const start = alignDown(at, SECTOR);
        const stop = Math.min(end, start + CHUNK);
        const bytes = buffer.subarray(0, alignUp(stop, SECTOR) - start);
        await this.#below.readv(start, IoVec.of(bytes));
        this.#cipher.decrypt(bytes, start / SECTOR);
        iov.copyIn(at - offset, bytes.subarray(at - start, stop - start));
        at = stop;
      }
    } finally {
      this.#return(buffer);
    }
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    const length = iov.byteLength;
    if (offset % SECTOR !== 0 || length % SECTOR !== 0 || length > this.#scratch.length) return false;
    if (this.#partial.overlaps(offset, length)) return false;
    const bytes = this.#scratch.subarray(0, length);
    iov.copyOut(0, bytes);
    this.#cipher.encrypt(bytes, offset / SECTOR);
    return this.#below.tryWritev(offset, IoVec.of(bytes));
  }

  async writev(offset: number, iov: IoVec): Promise<void> {
    const end = offset + iov.byteLength;
    const first = Math.min(end, alignUp(offset, SECTOR));
    if (offset < first) await this.#writePart(offset, iov.slice(0, first - offset));
    const last = Math.max(first, alignDown(end, SECTOR));
    const buffer = this.#borrow();
    try {
      for (let at = first; at < last; at += CHUNK) {
        const bytes = buffer.subarray(0, Math.min(CHUNK, last - at));
        iov.copyOut(at - offset, bytes);
        this.#cipher.encrypt(bytes, at / SECTOR);
        await this.#below.writev(at, IoVec.of(bytes));
      }
    } finally {
      this.#return(buffer);
    }
    if (last < end) await this.#writePart(last, iov.slice(last - offset, end - last));
  }

  /** Writes bytes inside one sector. */
  async #writePart(offset: number, iov: IoVec): Promise<void> {
    const start = alignDown(offset, SECTOR);
    const hold = await this.#partial.acquire(start, SECTOR);
    try {
      await Promise.all(this.#reads);
      const sector = new Uint8Array(SECTOR);
      await this.#below.readv(start, IoVec.of(sector));
      this.#cipher.decrypt(sector, start / SECTOR);
      iov.copyOut(0, sector.subarray(offset - start, offset - start + iov.byteLength));
      this.#cipher.encrypt(sector, start / SECTOR);
      await this.#below.writev(start, IoVec.of(sector));
    } finally {
      this.#partial.release(hold);
    }
  }

  /** Zeros below are no zeros here. */
  async writeZeroes(): Promise<boolean> {
    return false;
  }

  /** What is discarded reads as anything. */
  discard(offset: number, length: number): Promise<boolean> {
    return this.#below.discard(offset, length);
  }

  async copyFrom(): Promise<number> {
    return 0;
  }

  async nextData(offset: number): Promise<number> {
    return offset;
  }

  async nextHole(): Promise<number> {
    return this.size;
  }

  resize(size: number): Promise<void> {
    return this.#below.resize(size);
  }

  sync(): Promise<void> {
    return this.#below.sync();
  }

  lock(mode: LockMode): Promise<void> {
    return this.#below.lock(mode);
  }

  resolve(reference: string): string {
    return this.#below.resolve(reference);
  }

  close(): Promise<void> {
    return this.#below.close();
  }

  #borrow(): Uint8Array {
    return this.#buffers.pop() ?? new Uint8Array(CHUNK);
  }

  #return(buffer: Uint8Array): void {
    if (this.#buffers.length < KEPT) this.#buffers.push(buffer);
  }
}
