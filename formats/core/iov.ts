/**
 * Scatter-gather lists: where the bytes of one request are, or go, in memory.
 *
 * A list is made once per request slot and refilled; nothing is allocated per request. Users above the storage never look
 * inside the segments: they slice, copy in and out, and fill. So memory of another kind (a region that only native code may
 * touch) can join without a change above.
 */
export class IoVec {
  /** Segments in use. */
  count = 0;
  /** Sum of the segments' lengths, bytes. */
  byteLength = 0;
  /** Memory of each segment; only the first `count` are valid. */
  readonly memory: Uint8Array[] = [];
  /** Where each segment starts in its memory, bytes. */
  readonly offsets: number[] = [];
  /** Length of each segment, bytes; never 0. */
  readonly lengths: number[] = [];

  /** A list of one segment. */
  static of(memory: Uint8Array, offset = 0, length = memory.length - offset): IoVec {
    return new IoVec().append(memory, offset, length);
  }

  /** Empties the list for its next use, and lets go of the memory. */
  clear(): this {
    for (let i = 0; i < this.count; i++) this.memory[i] = EMPTY;
    this.count = 0;
    this.byteLength = 0;
    return this;
  }

  append(memory: Uint8Array, offset = 0, length = memory.length - offset): this {
    if (length === 0) return this;
    const i = this.count++;
    this.memory[i] = memory;
    this.offsets[i] = offset;
    this.lengths[i] = length;
    this.byteLength += length;
    return this;
  }

  /** Makes this list the part [at, at + length) of another; no bytes are copied. */
  setSlice(source: IoVec, at: number, length: number): this {
    this.clear();
    return this.appendSlice(source, at, length);
  }

  /** Appends the part [at, at + length) of another list; no bytes are copied. */
  appendSlice(source: IoVec, at: number, length: number): this {
    let skip = at;
    let left = length;
    for (let i = 0; i < source.count && left > 0; i++) {
      const size = source.lengths[i] as number;
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const take = Math.min(size - skip, left);
      this.append(source.memory[i] as Uint8Array, (source.offsets[i] as number) + skip, take);
      skip = 0;
      left -= take;
    }
    return this;
  }

  /** A new list over [at, at + length) of this one. */
  slice(at: number, length: number): IoVec {
    return new IoVec().setSlice(this, at, length);
  }

  /** Copies `bytes` into the list at byte `at`. What does not fit is left out. @returns bytes copied */
  copyIn(at: number, bytes: Uint8Array): number {
    let skip = at;
    let done = 0;
    for (let i = 0; i < this.count && done < bytes.length; i++) {
      const size = this.lengths[i] as number;
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const take = Math.min(size - skip, bytes.length - done);
      const start = (this.offsets[i] as number) + skip;
      (this.memory[i] as Uint8Array).set(
        done === 0 && take === bytes.length ? bytes : bytes.subarray(done, done + take),
        start,
      );
      done += take;
      skip = 0;
    }
    return done;
  }

  /** Copies from the list, starting at byte `at`, into `target`. @returns bytes copied */
  copyOut(at: number, target: Uint8Array): number {
    let skip = at;
    let done = 0;
    for (let i = 0; i < this.count && done < target.length; i++) {
      const size = this.lengths[i] as number;
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const take = Math.min(size - skip, target.length - done);
      const start = (this.offsets[i] as number) + skip;
      target.set((this.memory[i] as Uint8Array).subarray(start, start + take), done);
      done += take;
      skip = 0;
    }
    return done;
  }

  /** Copies [sourceAt, sourceAt + length) of another list to byte `at` of this one. */
  copyFrom(at: number, source: IoVec, sourceAt: number, length: number): void {
    let skip = sourceAt;
    let done = 0;
    for (let i = 0; i < source.count && done < length; i++) {
      const size = source.lengths[i] as number;
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const take = Math.min(size - skip, length - done);
      const start = (source.offsets[i] as number) + skip;
      this.copyIn(at + done, (source.memory[i] as Uint8Array).subarray(start, start + take));
      done += take;
      skip = 0;
    }
  }

  /** Sets [at, at + length) to one byte value. */
  fill(at: number, length: number, value = 0): void {
    let skip = at;
    let left = length;
    for (let i = 0; i < this.count && left > 0; i++) {
      const size = this.lengths[i] as number;
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const take = Math.min(size - skip, left);
      const start = (this.offsets[i] as number) + skip;
      (this.memory[i] as Uint8Array).fill(value, start, start + take);
      skip = 0;
      left -= take;
    }
  }

  /** All bytes as one array: the memory itself when the list has one segment, else a copy. */
  contiguous(): Uint8Array {
    if (this.count === 0) return EMPTY;
    if (this.count === 1) {
      const start = this.offsets[0] as number;
      return (this.memory[0] as Uint8Array).subarray(start, start + (this.lengths[0] as number));
    }
    const all = new Uint8Array(this.byteLength);
    this.copyOut(0, all);
    return all;
  }
}

const EMPTY = new Uint8Array(0);

const ZEROS = new Uint8Array(64 * 1024);

/** Appends zeros that share their memory: to be written from only. */
export function appendZeros(list: IoVec, length: number): void {
  for (let left = length; left > 0; left -= ZEROS.length) list.append(ZEROS, 0, Math.min(left, ZEROS.length));
}
