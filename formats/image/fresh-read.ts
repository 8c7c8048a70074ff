import { setTimeout as delay } from 'node:timers/promises';
import { codeOf, ImageError } from '../core/errors.ts';
import type { IoVec } from '../core/iov.ts';
import { begin, ChainReader, settle } from './chain-read.ts';
import { DATA, ExtentBuffer, OPAQUE } from './extent.ts';
import type { Layer } from './layer.ts';

/** How often something is read again that moved meanwhile; each time after a longer wait. */
const ATTEMPTS = 8;
const FIRST_WAIT_MS = 1;

/**
 * Reads a chain whose files others may write to (force-share). No table outlives a request, and what was read counts only when the
 * tables, read anew afterwards, still say that it is there: else the space may have become another part of the disk meanwhile.
 *
 * What a writer keeps in its own memory nobody else sees; between two requests the disk may change.
 */
export class FreshReader extends ChainReader {
  readonly #layers: readonly Layer[];
  /** For mapping, which goes from layer to layer. */
  readonly #plain: ChainReader;

  constructor(layers: readonly Layer[]) {
    super(layers);
    this.#layers = layers;
    this.#plain = new ChainReader(layers);
  }

  /** Nothing is known without looking. */
  override tryRead(): boolean {
    return false;
  }

  override readsZero(): boolean {
    return false;
  }

  override async map(depth: number, offset: number, length: number, out: ExtentBuffer): Promise<void> {
    const again = new ExtentBuffer(out.capacity);
    await this.#whileStill(offset, async () => {
      out.begin(offset);
      await this.#mapNow(depth, offset, length, out);
      again.begin(offset);
      await this.#mapNow(depth, offset, length, again);
      return isSame(out, again);
    });
  }

  override async read(depth: number, offset: number, iov: IoVec): Promise<void> {
    const before = new ExtentBuffer();
    const after = new ExtentBuffer();
    const end = offset + iov.byteLength;
    for (let at = offset; at < end; at = before.end) {
      await this.#whileStill(at, async () => {
        before.begin(at);
        await this.#mapNow(depth, at, end - at, before);
        await this.#readExtents(before, offset, iov);
        after.begin(at);
        await this.#mapNow(depth, at, before.end - at, after);
        return isSame(before, after);
      });
    }
  }

  async #mapNow(depth: number, offset: number, length: number, out: ExtentBuffer): Promise<void> {
    for (const layer of this.#layers) await layer.renew?.(offset, length);
    await this.#plain.map(depth, offset, length, out);
  }

  async #readExtents(extents: ExtentBuffer, start: number, iov: IoVec): Promise<void> {
    const pending: Promise<void>[] = [];
    for (let i = 0; i < extents.count; i++) {
      const offset = extents.offsets[i] as number;
      const part = iov.slice(offset - start, extents.lengths[i] as number);
      const kind = extents.kinds[i];
      if (kind === DATA) {
        const storage = extents.storages[i] as NonNullable<(typeof extents.storages)[0]>;
        begin(pending, storage.readv(extents.storageOffsets[i] as number, part));
      } else if (kind === OPAQUE) {
        const layer = this.#layers[extents.depths[i] as number] as Layer;
        begin(pending, layer.readOpaque(extents, i, offset, part));
      } else part.fill(0, part.byteLength);
    }
    await settle(pending);
  }

  /** Repeats an attempt until nothing moved under it. What fails may have failed because something moved. */
  async #whileStill(offset: number, attempt: () => Promise<boolean>): Promise<void> {
    const path = (this.#layers[0] as Layer).storage.path;
    let failure: unknown;
    for (let i = 0; i < ATTEMPTS; i++) {
      try {
        if (await attempt()) return;
        failure = undefined;
      } catch (error) {
        if (codeOf(error) !== 'CORRUPT') throw error;
        failure = error;
      }
      await delay(FIRST_WAIT_MS * 2 ** i);
    }
    if (failure !== undefined) throw failure;
    throw new ImageError('LOCKED', 'another program moves this part of the disk all the time', {
      path,
      offset,
      help: 'Pause the machine for a moment, or read one of its snapshots, which do not change.',
    });
  }
}

function isSame(a: ExtentBuffer, b: ExtentBuffer): boolean {
  if (a.count !== b.count || a.end !== b.end) return false;
  for (let i = 0; i < a.count; i++) {
    const same =
      a.kinds[i] === b.kinds[i] &&
      a.flags[i] === b.flags[i] &&
      a.lengths[i] === b.lengths[i] &&
      a.storages[i] === b.storages[i] &&
      a.storageOffsets[i] === b.storageOffsets[i] &&
      a.depths[i] === b.depths[i];
    if (!same) return false;
  }
  return true;
}
