/** Clusters that a mapping has dropped: runs of host clusters, in the order of dropping. */
export class Unlinked {
  /** Triples: first cluster, count, 1 where the space goes back to the file system. */
  #runs: number[] = [];

  get empty(): boolean {
    return this.#runs.length === 0;
  }

  /** Runs that are listed: what bounds the memory of a large discard. */
  get length(): number {
    return this.#runs.length / 3;
  }

  add(cluster: number, count: number, punch: boolean): void {
    const last = this.#runs.length - 3;
    const flag = punch ? 1 : 0;
    if (
      last >= 0 &&
      this.#runs[last + 2] === flag &&
      (this.#runs[last] as number) + (this.#runs[last + 1] as number) === cluster
    ) {
      this.#runs[last + 1] = (this.#runs[last + 1] as number) + count;
      return;
    }
    this.#runs.push(cluster, count, flag);
  }

  /** Puts the runs of another list before these. */
  prepend(other: Unlinked): void {
    this.#runs = other.#runs.concat(this.#runs);
  }

  /** Sorted by cluster: neighbours share a slice of refcounts. A cluster may be in several runs: it was referred to more than once. */
  sorted(): { readonly first: number; readonly count: number; readonly punch: boolean }[] {
    const runs = [];
    for (let i = 0; i < this.#runs.length; i += 3) {
      runs.push({
        first: this.#runs[i] as number,
        count: this.#runs[i + 1] as number,
        punch: this.#runs[i + 2] === 1,
      });
    }
    return runs.sort((a, b) => a.first - b.first);
  }
}
