/**
 * What must be on a disk after its server was killed. Every sector written carries its address and the number of its write,
 * so that any content can be judged: it must be of a write that was sent, and of none older than the last one that a
 * completed SYNCHRONIZE CACHE or FUA write made durable.
 *
 * The writer keeps writes in flight apart: no two of them overlap.
 */

export const SECTOR = 512;

export interface TrackedWrite {
  readonly number: number;
  /** Sectors. */
  readonly start: number;
  readonly count: number;
  /** Zeros instead of stamps. */
  readonly zero: boolean;
}

export class CrashModel {
  /** Per sector: the write that is certain to be on the disk, or a newer one. 0: what was there at the start. */
  readonly #floor: Uint32Array;
  /** Per sector: the last write of zeros that was sent. */
  readonly #lastZero: Uint32Array;
  readonly #writes: TrackedWrite[] = [];
  #completed: TrackedWrite[] = [];
  readonly #flying = new Set<TrackedWrite>();

  constructor(sectors: number) {
    this.#floor = new Uint32Array(sectors);
    this.#lastZero = new Uint32Array(sectors);
  }

  /** True when no write in flight touches these sectors. */
  isFree(start: number, count: number): boolean {
    for (const write of this.#flying) {
      if (start < write.start + write.count && write.start < start + count) return false;
    }
    return true;
  }

  /** A write is about to be sent. */
  sent(start: number, count: number, zero: boolean): TrackedWrite {
    const write = { number: this.#writes.length + 1, start, count, zero };
    this.#writes.push(write);
    this.#flying.add(write);
    if (zero) this.#lastZero.fill(write.number, start, start + count);
    return write;
  }

  /** The bytes of a write: each sector says where it belongs and which write it is of. */
  static stamp(write: TrackedWrite): Buffer {
    const bytes = Buffer.alloc(write.count * SECTOR);
    if (write.zero) return bytes;
    for (let sector = 0; sector < write.count; sector++) {
      const at = sector * SECTOR;
      for (let word = 0; word < SECTOR; word += 8) {
        bytes.writeUInt32LE(write.start + sector, at + word);
        bytes.writeUInt32LE(write.number, at + word + 4);
      }
    }
    return bytes;
  }

  /** The answer came: it is on its way, and with FUA it is durable. */
  completed(write: TrackedWrite, durable: boolean): void {
    this.#flying.delete(write);
    if (durable) this.#raise(write);
    else this.#completed.push(write);
  }

  /** A SYNCHRONIZE CACHE is about to be sent. @returns what to call when it has completed */
  synchronizing(): () => void {
    const covered = this.#completed;
    this.#completed = [];
    return () => {
      for (const write of covered) this.#raise(write);
    };
  }

  /** How many writes were sent, and the number of sectors that have something durable. */
  get facts(): { sent: number; durableSectors: number } {
    let durableSectors = 0;
    for (const floor of this.#floor) if (floor > 0) durableSectors++;
    return { sent: this.#writes.length, durableSectors };
  }

  /**
   * Judges the disk's content.
   *
   * @param initially what a sector held at the start, when it was not zeros
   * @returns what is wrong, at most ten of it
   */
  judge(disk: Uint8Array, initially?: (sector: number) => Uint8Array): string[] {
    const view = new DataView(disk.buffer, disk.byteOffset, disk.length);
    const wrong: string[] = [];
    for (let sector = 0; sector < this.#floor.length && wrong.length < 10; sector++) {
      const floor = this.#floor[sector] as number;
      const found = identify(view, sector);
      if (found === undefined || found === 0) {
        if (found === 0 && (this.#lastZero[sector] as number) >= Math.max(1, floor)) continue;
        const bytes = disk.subarray(sector * SECTOR, (sector + 1) * SECTOR);
        const before = initially?.(sector);
        const asBefore = before === undefined ? found === 0 : Buffer.compare(bytes, before) === 0;
        if (floor === 0 && asBefore) continue;
        wrong.push(
          `sector ${sector}: ${asBefore ? 'as at the start' : found === 0 ? 'zeros' : 'garbage'}, write ${floor} was durable`,
        );
        continue;
      }
      const write = this.#writes[found - 1];
      if (write === undefined || write.zero || sector < write.start || sector >= write.start + write.count) {
        wrong.push(`sector ${sector}: stamped with write ${found}, which did not write it`);
      } else if (found < floor) {
        wrong.push(`sector ${sector}: write ${found}, though write ${floor} was durable`);
      }
    }
    return wrong;
  }

  /** After a crash: what is found is what is there now, whatever was in flight. */
  settle(disk: Uint8Array): void {
    const view = new DataView(disk.buffer, disk.byteOffset, disk.length);
    this.#flying.clear();
    this.#completed = [];
    for (let sector = 0; sector < this.#floor.length; sector++) {
      const found = identify(view, sector);
      if (found !== undefined && found > (this.#floor[sector] as number)) this.#floor[sector] = found;
      else if (found === 0 && (this.#lastZero[sector] as number) > (this.#floor[sector] as number)) {
        this.#floor[sector] = this.#lastZero[sector] as number;
      }
    }
  }

  #raise(write: TrackedWrite): void {
    for (let sector = write.start; sector < write.start + write.count; sector++) {
      if ((this.#floor[sector] as number) < write.number) this.#floor[sector] = write.number;
    }
  }
}

/** The write that a sector is stamped with, 0 for zeros, undefined for anything else. */
function identify(view: DataView, sector: number): number | undefined {
  const at = sector * SECTOR;
  const address = view.getUint32(at, true);
  const number = view.getUint32(at + 4, true);
  const zero = address === 0 && number === 0;
  if (!zero && (address !== sector || number === 0)) return undefined;
  for (let word = 8; word < SECTOR; word += 8) {
    if (view.getUint32(at + word, true) !== address || view.getUint32(at + word + 4, true) !== number) return undefined;
  }
  return number;
}
