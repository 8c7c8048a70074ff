import { StorageError } from '../core/errors.ts';
import type { Storage } from '../storage/storage.ts';

/**
 * Which physical blocks of the file are in use, while it is open for writing. Places are indexes: the first block behind the
 * header is 0.
 *
 * A block that loses its last reference is `retired` first: the file's map still names it. Once the map is durable without it, it is
 * `free` for the next allocation.
 */
export class PhysicalBlocks {
  /** Index behind the last block in use: what the header counts. */
  next: number;
  /** The most indexes that the header may count. */
  #limit: number;
  /** Indexes below `next` that nothing refers to; the last is taken first. */
  #free: number[];
  #retired: number[] = [];

  constructor(next: number, free: number[], limit: number) {
    this.next = next;
    this.#free = free.sort((a, b) => b - a);
    this.#limit = limit;
  }

  get freeCount(): number {
    return this.#free.length;
  }

  /** A place for a block; undefined when there is none until retired ones are free. */
  tryTake(): number | undefined {
    const index = this.#free.pop();
    if (index !== undefined) return index;
    return this.next < this.#limit ? this.next++ : undefined;
  }

  /** Gives back a place that no map has named. */
  giveBack(index: number): void {
    if (index === this.next - 1) this.next--;
    else this.#free.push(index);
  }

  /** Nothing in memory refers to the place any more, but the file may. */
  retire(index: number): void {
    this.#retired.push(index);
  }

  /** Takes the retired ones out: the caller gives them to free() once the file does not refer to them. */
  takeRetired(): number[] {
    const taken = this.#retired;
    this.#retired = [];
    return taken;
  }

  /** Undoes takeRetired(). */
  putRetired(indexes: readonly number[]): void {
    for (const index of indexes) this.#retired.push(index);
  }

  free(indexes: readonly number[]): void {
    for (const index of indexes) this.#free.push(index);
  }

  /** All blocks are below `count` now, and none of those is free. */
  reset(count: number): void {
    this.next = count;
    this.#free = [];
  }

  /** After a resize: all indexes are lower by `shift`, and there are new bounds. */
  relocate(shift: number, next: number, limit: number): void {
    this.next = next;
    this.#limit = limit;
    this.#free = this.#free.filter((index) => index >= shift).map((index) => index - shift);
  }
}

/** When not even retired blocks are left. */
export function noBlocks(storage: Storage): StorageError {
  const why = storage.growsZeroed ? 'all blocks that the block map has room for are in use' : 'the device is full';
  return new StorageError('NO_SPACE', why, { path: storage.path });
}
