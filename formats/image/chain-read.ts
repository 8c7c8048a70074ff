import { IoVec } from '../core/iov.ts';
import { ABSENT, ALLOCATED, BEHIND_PARENT, DATA, ExtentBuffer, OPAQUE, ZERO } from './extent.ts';
import type { Layer } from './layer.ts';

/** Buffers that one level of the synchronous path works with; calls nest only from a layer to its parent. */
interface Level {
  readonly extents: ExtentBuffer;
  readonly part: IoVec;
}

/**
 * Reads through a chain of layers: whatever a layer does not hold comes from the one below, and zeros from below the last.
 * Knows nothing of writers: whoever calls orders reads against writes.
 */
export class ChainReader {
  /** Top first. */
  readonly #layers: readonly Layer[];
  readonly #levels: Level[];
  /** Extent buffers for asynchronous calls, which may overlap in time. */
  readonly #free: ExtentBuffer[] = [];

  constructor(layers: readonly Layer[]) {
    this.#layers = layers;
    this.#levels = layers.map(() => ({ extents: new ExtentBuffer(), part: new IoVec() }));
  }

  /** Reads when mapping and data of every layer involved are at hand. The range is inside the layer at `depth`. */
  tryRead(depth: number, offset: number, iov: IoVec): boolean {
    const layer = this.#layers[depth] as Layer;
    const { extents, part } = this.#levels[depth] as Level;
    const length = iov.byteLength;
    const count = layer.tryMap(offset, length, extents);
    if (count < 0 || extents.end < offset + length) return false;
    if (count === 1) return this.#tryExtent(depth, extents, 0, offset, iov);
    for (let i = 0; i < count; i++) {
      const at = extents.offsets[i] as number;
      part.setSlice(iov, at - offset, extents.lengths[i] as number);
      if (!this.#tryExtent(depth, extents, i, at, part)) return false;
    }
    return true;
  }

  #tryExtent(depth: number, extents: ExtentBuffer, index: number, offset: number, iov: IoVec): boolean {
    switch (extents.kinds[index]) {
      case DATA: {
        const storage = extents.storages[index];
        return storage?.tryReadv(extents.storageOffsets[index] as number, iov) ?? false;
      }
      case OPAQUE:
        return (this.#layers[depth] as Layer).tryReadOpaque(extents, index, offset, iov);
      case ABSENT:
        return this.#tryBelow(depth + 1, offset, iov);
      default:
        iov.fill(0, iov.byteLength);
        return true;
    }
  }

  #tryBelow(depth: number, offset: number, iov: IoVec): boolean {
    const inside = this.#inside(depth, offset, iov.byteLength);
    if (inside === iov.byteLength) return this.tryRead(depth, offset, iov);
    if (inside > 0 && !this.tryRead(depth, offset, iov.slice(0, inside))) return false;
    iov.fill(inside, iov.byteLength - inside);
    return true;
  }

  /** Reads, waiting for tables and data. The range may leave the layer at `depth`, and `depth` the chain: zeros there. */
  async read(depth: number, offset: number, iov: IoVec): Promise<void> {
    const inside = this.#inside(depth, offset, iov.byteLength);
    if (inside < iov.byteLength) iov.fill(inside, iov.byteLength - inside);
    if (inside === 0) return;
    const layer = this.#layers[depth] as Layer;
    const extents = this.#borrow();
    const ticket = layer.leases.pin();
    const pending: Promise<void>[] = [];
    try {
      const end = offset + inside;
      for (let at = offset; at < end; at = extents.end) {
        if (layer.tryMap(at, end - at, extents) < 0) await layer.map(at, end - at, extents);
        for (let i = 0; i < extents.count; i++) {
          const start = extents.offsets[i] as number;
          if (extents.kinds[i] === OPAQUE && layer.readOpaqueRun !== undefined) {
            const first = i;
            while (i + 1 < extents.count && extents.kinds[i + 1] === OPAQUE) i++;
            const length = (extents.offsets[i] as number) + (extents.lengths[i] as number) - start;
            begin(pending, layer.readOpaqueRun(extents, first, i + 1, start, iov.slice(start - offset, length)));
            continue;
          }
          const part = iov.slice(start - offset, extents.lengths[i] as number);
          if (this.#tryExtent(depth, extents, i, start, part)) continue;
          begin(pending, this.#readExtent(depth, extents, i, start, part));
        }
      }
    } finally {
      // Also after an error: nobody may still write into iov when this returns.
      await settle(pending).finally(() => {
        layer.leases.unpin(ticket);
        this.#free.push(extents);
      });
    }
  }

  /** Begins reading one extent; takes what it needs from `extents` before it first waits. */
  #readExtent(depth: number, extents: ExtentBuffer, index: number, offset: number, iov: IoVec): Promise<void> {
    switch (extents.kinds[index]) {
      case DATA:
        return (extents.storages[index] as NonNullable<(typeof extents.storages)[0]>).readv(
          extents.storageOffsets[index] as number,
          iov,
        );
      case OPAQUE:
        return (this.#layers[depth] as Layer).readOpaque(extents, index, offset, iov);
      default:
        return this.read(depth + 1, offset, iov);
    }
  }

  /** Whether a range is known, from memory, to read as zeros. False when it does not or when that is not known. */
  readsZero(depth: number, offset: number, length: number): boolean {
    const inside = this.#inside(depth, offset, length);
    if (inside === 0) return true;
    const layer = this.#layers[depth] as Layer;
    const { extents } = this.#levels[depth] as Level;
    if (layer.tryMap(offset, inside, extents) < 0 || extents.end < offset + inside) return false;
    for (let i = 0; i < extents.count; i++) {
      const kind = extents.kinds[i];
      if (kind === DATA || kind === OPAQUE) return false;
    }
    for (let i = 0; i < extents.count; i++) {
      if (extents.kinds[i] !== ABSENT) continue;
      if (!this.readsZero(depth + 1, extents.offsets[i] as number, extents.lengths[i] as number)) return false;
    }
    return true;
  }

  /**
   * Exact extents of the whole chain, with the layer that decided in `out.depths`. ABSENT where no layer holds the range. May end early.
   * Ranges outside the layer at `depth` are ZERO of the layer above: a parent's end hides nothing.
   */
  async map(depth: number, offset: number, length: number, out: ExtentBuffer): Promise<void> {
    const layer = this.#layers[depth] as Layer;
    const extents = this.#borrow();
    try {
      const inside = this.#inside(depth, offset, length);
      for (let at = offset; at < offset + inside; at = extents.end) {
        await layer.map(at, offset + inside - at, extents);
        for (let i = 0; i < extents.count; i++) {
          const kind = extents.kinds[i] as typeof DATA | typeof ZERO;
          const start = extents.offsets[i] as number;
          const size = extents.lengths[i] as number;
          if (extents.kinds[i] === ABSENT) {
            if (depth + 1 < this.#layers.length) await this.map(depth + 1, start, size, out);
            else out.append(ABSENT, size, null, 0, 0, depth);
          } else {
            const flags = extents.flags[i] as number;
            const placed = kind !== ZERO || (flags & ALLOCATED) !== 0;
            out.append(
              kind,
              size,
              placed ? (extents.storages[i] ?? null) : null,
              placed ? (extents.storageOffsets[i] as number) : 0,
              flags,
              depth,
            );
          }
          if (out.end < start + size) return; // full
        }
      }
      if (inside === length) return;
      if (depth === 0) out.append(ABSENT, length - inside);
      else out.append(ZERO, length - inside, null, 0, BEHIND_PARENT, depth - 1);
    } finally {
      this.#free.push(extents);
    }
  }

  /** How many of `length` bytes at `offset` lie inside the layer at `depth`. */
  #inside(depth: number, offset: number, length: number): number {
    const layer = this.#layers[depth];
    return layer === undefined ? 0 : Math.max(0, Math.min(length, layer.size - offset));
  }

  #borrow(): ExtentBuffer {
    return this.#free.pop() ?? new ExtentBuffer();
  }
}

/** Adds work that settle() waits for later. Until then nobody listens to it, and Node ends a process over a failure that nobody hears. */
export function begin(pending: Promise<void>[], work: Promise<void>): void {
  work.catch(() => undefined);
  pending.push(work);
}

/** Waits until all have ended, then throws the first error there was. */
export async function settle(pending: readonly Promise<void>[]): Promise<void> {
  if (pending.length === 0) return;
  for (const result of await Promise.allSettled(pending)) {
    if (result.status === 'rejected') throw result.reason;
  }
}
