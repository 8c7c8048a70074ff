import { ImageError, LunetteError } from '../core/errors.ts';
import type { IoVec } from '../core/iov.ts';
import { Lifetime } from '../core/lifetime.ts';
import type { ChainImage } from './chain.ts';
import { ChainReader } from './chain-read.ts';
import type { Layer, NewSnapshotOptions, SnapshotInfo, SnapshotReference } from './layer.ts';

/**
 * Takes an internal snapshot of an image that is open for writing: everything that completed writes made, durably. Writes wait meanwhile,
 * reads go on.
 *
 * @throws {LunetteError} UNSUPPORTED by the format; TOO_LARGE when the format's counters or tables cannot hold another one; NO_SPACE
 */
export function createSnapshot(
  image: ChainImage,
  name: string,
  options: NewSnapshotOptions = {},
): Promise<SnapshotInfo> {
  return image.restructure((top) => top.createSnapshot?.(name, options) ?? none(top));
}

/** Makes the disk what it was when a snapshot was taken, its size included. @throws {LunetteError} NOT_FOUND and others */
export function applySnapshot(image: ChainImage, reference: SnapshotReference): Promise<void> {
  return image.restructure((top) => top.applySnapshot?.(reference) ?? none(top));
}

/** Deletes a snapshot and frees what only it referred to. @throws {LunetteError} NOT_FOUND; LOCKED while it is open */
export function deleteSnapshot(image: ChainImage, reference: SnapshotReference): Promise<void> {
  return image.restructure((top) => top.deleteSnapshot?.(reference) ?? none(top));
}

/** The state of the machine that was saved with a snapshot: bytes that mean something to the program that saved them. */
export class VmState {
  /** Bytes; 0: the disk alone was saved. */
  readonly size: number;
  readonly #layer: Layer;
  readonly #reader: ChainReader;
  readonly #offset: number;
  readonly #lifetime: Lifetime;

  constructor({ layer, offset, size }: { layer: Layer; offset: number; size: number }) {
    this.size = size;
    this.#layer = layer;
    this.#reader = new ChainReader([layer]);
    this.#offset = offset;
    this.#lifetime = new Lifetime(layer.storage.path);
  }

  /** Fills `iov` with the bytes from `offset` on. @throws {LunetteError} INVALID outside of [0, size] */
  async readv(offset: number, iov: IoVec): Promise<void> {
    if (!(Number.isSafeInteger(offset) && offset >= 0 && offset + iov.byteLength <= this.size)) {
      throw new LunetteError('INVALID', `the VM state has ${this.size} bytes`, {
        path: this.#layer.storage.path,
        offset,
      });
    }
    this.#lifetime.enter();
    try {
      await this.#reader.read(0, this.#offset + offset, iov);
    } finally {
      this.#lifetime.leave();
    }
  }

  /** While it is open the snapshot cannot be deleted, and the file stays open. */
  close(): Promise<void> {
    return this.#lifetime.close(() => this.#layer.close());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Opens the VM state of a snapshot for reading; the image may be open read-only or be written meanwhile.
 *
 * @throws {LunetteError} NOT_FOUND; UNSUPPORTED by the format; CORRUPT when the snapshot has no room for what it says it holds
 */
export async function openVmState(image: ChainImage, reference: SnapshotReference): Promise<VmState> {
  const top = image.layers[0] as Layer;
  return new VmState(await (top.openVmState?.(reference) ?? none(top)));
}

async function none(top: Layer): Promise<never> {
  throw new ImageError('UNSUPPORTED', `the format ${top.format} has no internal snapshots`, { path: top.storage.path });
}
