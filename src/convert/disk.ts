import { IoVec } from '../../formats/core/iov.ts';
import { alignUp } from '../../formats/core/units.ts';
import type { ExtentBuffer, Image } from '../../formats/index.ts';
import { ABSENT } from '../../formats/index.ts';

/** What is read of a disk. Every Image is one. */
export type DiskSource = Pick<Image, 'path' | 'size' | 'map' | 'tryReadv' | 'readv'>;

/** True when others may write to a disk's files while it is read: where its bytes lie must not be relied on. */
export function isShared(disk: DiskSource): boolean {
  return (disk as { readonly shared?: boolean }).shared === true;
}

/** Reads a range: at once where that is possible. */
export function readDisk(disk: DiskSource, offset: number, list: IoVec): Promise<void> | undefined {
  return disk.tryReadv(offset, list) ? undefined : disk.readv(offset, list);
}

/** Several disks, one after the other, as one. Each is whole sectors in it, as guests and qemu-img see it: a raw file may end inside one. */
export function concatenate(disks: readonly DiskSource[]): DiskSource {
  const [first] = disks;
  if (first === undefined) throw new RangeError('no disk to read from');
  if (disks.length === 1) return first;
  const whole = disks.map((disk) => withSize(disk, alignUp(disk.size, 512)));
  return new ConcatenatedDisk(whole, first.path);
}

class ConcatenatedDisk implements DiskSource {
  readonly path: string;
  readonly size: number;
  readonly #disks: readonly DiskSource[];
  /** Where each begins, and where the last ends. */
  readonly #starts: readonly number[];

  constructor(disks: readonly DiskSource[], path: string) {
    this.path = path;
    this.#disks = disks;
    const starts = [0];
    for (const disk of disks) starts.push((starts[starts.length - 1] as number) + disk.size);
    this.#starts = starts;
    this.size = starts[disks.length] as number;
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    const i = this.#find(offset);
    const start = this.#starts[i] as number;
    const take = Math.min(length, (this.#starts[i + 1] as number) - offset);
    await (this.#disks[i] as DiskSource).map(offset - start, take, out);
    for (let k = 0; k < out.count; k++) out.offsets[k] = (out.offsets[k] as number) + start;
    out.end += start;
    return out.count;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    const i = this.#find(offset);
    const length = iov.byteLength;
    if (offset + length > (this.#starts[i + 1] as number)) return false;
    return (this.#disks[i] as DiskSource).tryReadv(offset - (this.#starts[i] as number), iov);
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    const end = offset + iov.byteLength;
    for (let i = this.#find(offset), at = offset; at < end; i++) {
      const start = this.#starts[i] as number;
      const take = Math.min(end, this.#starts[i + 1] as number) - at;
      if (take > 0) await (this.#disks[i] as DiskSource).readv(at - start, iov.slice(at - offset, take));
      at += take;
    }
  }

  #find(offset: number): number {
    let i = 0;
    while (i < this.#disks.length - 1 && (this.#starts[i + 1] as number) <= offset) i++;
    return i;
  }
}

/** A disk with zeros behind its end, or one that is cut: as long as a target needs it. */
export function withSize(disk: DiskSource, size: number): DiskSource {
  if (size === disk.size) return disk;
  const inside = (offset: number, length: number): number => Math.max(0, Math.min(length, disk.size - offset));
  return {
    path: disk.path,
    size,
    async map(offset, length, out) {
      const take = inside(offset, length);
      if (take > 0) return disk.map(offset, take, out);
      out.begin(offset);
      out.append(ABSENT, length);
      return 1;
    },
    tryReadv(offset, iov) {
      const take = inside(offset, iov.byteLength);
      if (take < iov.byteLength) return false;
      return disk.tryReadv(offset, iov);
    },
    async readv(offset, iov) {
      const take = inside(offset, iov.byteLength);
      if (take > 0) await disk.readv(offset, iov.slice(0, take));
      iov.fill(take, iov.byteLength - take);
    },
  };
}

/** A list over the first `length` bytes of a buffer. */
export function listOf(buffer: Uint8Array, length: number): IoVec {
  return IoVec.of(buffer, 0, length);
}
