/** A held (or awaited) range. */
export interface RangeHold {
  readonly start: number;
  readonly end: number;
  /** The holder may change where the bytes of the range are, not just what they are. */
  readonly moves: boolean;
}

interface Entry extends RangeHold {
  /** Earlier overlapping entries that have not ended. */
  blockers: number;
  grant: (() => void) | undefined;
}

/**
 * Exclusive locks on ranges, granted in the order they were asked for: a range waits for every earlier one that it overlaps,
 * whether that is held or waits itself. So nothing starves and nothing passes an earlier overlapping command.
 *
 * Lists are short (commands in flight of one image), so they are searched, not indexed.
 */
export class RangeLock {
  readonly #entries: Entry[] = [];

  /** True when nothing is held or awaited. */
  get idle(): boolean {
    return this.#entries.length === 0;
  }

  /** Whether anything held or awaited overlaps. */
  overlaps(offset: number, length: number): boolean {
    const entries = this.#entries;
    if (entries.length === 0) return false;
    const end = offset + length;
    for (const entry of entries) {
      if (entry.start < end && offset < entry.end) return true;
    }
    return false;
  }

  /** Whether anything held or awaited overlaps and may move bytes. */
  overlapsMove(offset: number, length: number): boolean {
    const end = offset + length;
    for (const entry of this.#entries) {
      if (entry.moves && entry.start < end && offset < entry.end) return true;
    }
    return false;
  }

  /** Takes a range, waiting for its turn when it must. @returns what to give to release() */
  acquire(offset: number, length: number, moves = true): RangeHold | Promise<RangeHold> {
    const entry: Entry = { start: offset, end: offset + length, moves, blockers: 0, grant: undefined };
    for (const other of this.#entries) {
      if (other.start < entry.end && entry.start < other.end) entry.blockers++;
    }
    this.#entries.push(entry);
    if (entry.blockers === 0) return entry;
    return new Promise((resolve) => {
      entry.grant = () => resolve(entry);
    });
  }

  release(hold: RangeHold): void {
    const index = this.#entries.indexOf(hold as Entry);
    if (index < 0) throw new Error('a range was released twice');
    this.#entries.splice(index, 1);
    for (let i = index; i < this.#entries.length; i++) {
      const later = this.#entries[i] as Entry;
      if (hold.start < later.end && later.start < hold.end && --later.blockers === 0) later.grant?.();
    }
  }

  /** Resolves when everything that overlaps and was asked for by now has ended; at once (undefined) when there is nothing. */
  passed(offset: number, length: number): Promise<void> | undefined {
    if (!this.overlaps(offset, length)) return undefined;
    return Promise.resolve(this.acquire(offset, length)).then((hold) => this.release(hold));
  }
}
