/**
 * Keeps host space that was freed from being used again while somebody may still read it.
 *
 * Readers pin before they map and unpin when their bytes have arrived. Whoever frees space waits until every reader that had
 * pinned by then has gone: readers of later times have mapped after the space was unlinked. Counting by generation needs no
 * table of ranges and costs a reader two additions.
 */
export class LeaseBook {
  #generation = 0;
  /** Readers per generation, oldest first; the last belongs to `#generation`. */
  readonly #counts: number[] = [0];
  readonly #waiting: { generation: number; resolve: () => void }[] = [];

  /** @returns a ticket for unpin */
  pin(): number {
    const last = this.#counts.length - 1;
    this.#counts[last] = (this.#counts[last] as number) + 1;
    return this.#generation;
  }

  unpin(ticket: number): void {
    const i = ticket - (this.#generation - this.#counts.length + 1);
    const left = (this.#counts[i] as number) - 1;
    this.#counts[i] = left;
    if (left === 0 && this.#waiting.length > 0) this.#settle();
  }

  /** True while no reader is pinned. */
  get idle(): boolean {
    return this.#counts.every((count) => count === 0);
  }

  /** Resolves when every reader that is pinned now has unpinned. */
  quiesced(): Promise<void> {
    if (this.idle) return Promise.resolve();
    const generation = this.#generation++;
    this.#counts.push(0);
    return new Promise((resolve) => {
      this.#waiting.push({ generation, resolve });
    });
  }

  #settle(): void {
    while (this.#counts.length > 1 && this.#counts[0] === 0) this.#counts.shift();
    const oldest = this.#generation - this.#counts.length + 1;
    // The current generation stays in the list even when it is empty: an empty one is no reader.
    const oldestBusy = this.#counts[0] === 0 ? this.#generation + 1 : oldest;
    while (this.#waiting.length > 0 && (this.#waiting[0] as { generation: number }).generation < oldestBusy) {
      this.#waiting.shift()?.resolve();
    }
  }
}
