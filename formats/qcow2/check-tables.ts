/** How often L1 tables refer to each L2 table. An open hash table in typed arrays: an image with small clusters has millions. */
export class L2References {
  #clusters = new Float64Array(1024).fill(-1);
  #all = new Uint32Array(1024);
  #active = new Uint32Array(1024);
  #size = 0;

  /** @param cluster where the L2 table is; a positive integer */
  add(cluster: number, references: number, active: boolean): void {
    if (this.#size * 4 >= this.#clusters.length * 3) this.#grow();
    const slot = this.#slot(cluster);
    if (this.#clusters[slot] === -1) {
      this.#clusters[slot] = cluster;
      this.#size++;
    }
    this.#all[slot] = (this.#all[slot] as number) + references;
    if (active) this.#active[slot] = (this.#active[slot] as number) + references;
  }

  /** Clusters of all tables, in the order of the file. */
  clusters(): Float64Array {
    return this.#clusters.filter((cluster) => cluster !== -1).sort();
  }

  /** References from all L1 tables. */
  all(cluster: number): number {
    return this.#all[this.#slot(cluster)] as number;
  }

  /** References from the active L1 table. */
  active(cluster: number): number {
    return this.#active[this.#slot(cluster)] as number;
  }

  #slot(cluster: number): number {
    const mask = this.#clusters.length - 1;
    let slot = Math.imul((cluster ^ (cluster / 0x100000000)) | 0, 0x9e3779b1) >>> 7;
    for (slot &= mask; this.#clusters[slot] !== -1 && this.#clusters[slot] !== cluster; ) slot = (slot + 1) & mask;
    return slot;
  }

  #grow(): void {
    const [clusters, all, active] = [this.#clusters, this.#all, this.#active];
    this.#clusters = new Float64Array(clusters.length * 2).fill(-1);
    this.#all = new Uint32Array(clusters.length * 2);
    this.#active = new Uint32Array(clusters.length * 2);
    for (let i = 0; i < clusters.length; i++) {
      const cluster = clusters[i] as number;
      if (cluster === -1) continue;
      const slot = this.#slot(cluster);
      this.#clusters[slot] = cluster;
      this.#all[slot] = all[i] as number;
      this.#active[slot] = active[i] as number;
    }
  }
}
